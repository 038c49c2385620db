// AVX-512: float32 scores, one fused multiply-add for each dimension.
#include "wide512.h"

namespace {

struct Avx512 : Scores32 {
  using Cell = float;
  static constexpr int kRows = kTileRows;

  static int64_t depth(int64_t d) { return d; }
  static void enter() {}
  static void leave() {}
  static float square(const float* x, int64_t d) { return square512(x, d); }

  // Rows are stored negated, so that the sum that starts at |c|^2 / 2 ends at the score.
  static float pack_row(const float* x, int64_t d, float* block, int i) {
    for (int64_t t = 0; t < d; ++t) block[t * kRows + i] = -x[t];
    return 0;
  }

  static Packed pack_code(const float* x, int64_t d, float* panel, int j) {
    for (int64_t t = 0; t < d; ++t) panel[t * kCodes + j] = x[t];
    return {square512(x, d), 0, 0};
  }

  static uint32_t score(const float* rows, const float* codes, const float* half, int64_t d,
                        const float* threshold, float* scores) {
    __m512 sum[kRows][2];
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      sum[i][0] = _mm512_load_ps(half);
      sum[i][1] = _mm512_load_ps(half + 16);
    }
    for (int64_t t = 0; t < d; ++t, rows += kRows, codes += kCodes) {
      const __m512 c0 = _mm512_load_ps(codes), c1 = _mm512_load_ps(codes + 16);
#pragma GCC unroll 12
      for (int i = 0; i < kRows; ++i) {
        const __m512 z = _mm512_set1_ps(rows[i]);
        sum[i][0] = _mm512_fmadd_ps(z, c0, sum[i][0]);
        sum[i][1] = _mm512_fmadd_ps(z, c1, sum[i][1]);
      }
    }
    return hits512(sum, threshold, scores);
  }
};

}  // namespace

bool search_avx512(const Problem& p, int64_t begin, int64_t end) {
  return Search<Avx512>(p).run(begin, end);
}
