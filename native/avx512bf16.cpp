// AVX-512 with bfloat16 dot products: twice the multiply-adds of float32 in the same time, and a
// wider band to be decided in float64.
#include "bfloat16.h"

namespace {

struct Avx512Bf16 : Bfloat16 {
  static constexpr int kRows = kTileRows;

  static int64_t depth(int64_t d) { return (d + 1) / 2 * 2; }
  static void enter() {}
  static void leave() {}

  // [d / 2][12 rows][2]
  static float pack_row(const float* x, int64_t d, uint16_t* block, int i) {
    float residue = 0;
    alignas(64) uint16_t rounded[32];
    for (int64_t t = 0; t < d; t += 32) {
      residue += round_row(x + t, 32, rounded);
      const int64_t pairs = (d - t < 32 ? d - t : 32) / 2;
      uint16_t* out = block + t * kRows + 2 * i;
      for (int64_t s = 0; s < pairs; ++s) memcpy(out + 2 * s * kRows, rounded + 2 * s, 4);
    }
    return residue;
  }

  static uint32_t score(const uint16_t* rows, const uint16_t* codes, const float* half, int64_t d,
                        const float* threshold, float* scores) {
    __m512 sum[kRows][2];
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      sum[i][0] = _mm512_load_ps(half);
      sum[i][1] = _mm512_load_ps(half + 16);
    }
    const float* z = reinterpret_cast<const float*>(rows);  // pairs, moved as 32-bit lanes
    for (int64_t t = 0; t < d; t += 2, z += kRows, codes += 2 * kCodes) {
      const __m512bh c0 = (__m512bh)_mm512_load_si512(codes);
      const __m512bh c1 = (__m512bh)_mm512_load_si512(codes + 32);
#pragma GCC unroll 12
      for (int i = 0; i < kRows; ++i) {
        const __m512bh pair = (__m512bh)_mm512_set1_ps(z[i]);
        sum[i][0] = _mm512_dpbf16_ps(sum[i][0], pair, c0);
        sum[i][1] = _mm512_dpbf16_ps(sum[i][1], pair, c1);
      }
    }
    return hits512(sum, threshold, scores);
  }
};

}  // namespace

bool search_avx512bf16(const Problem& p, int64_t begin, int64_t end) {
  return Search<Avx512Bf16>(p).run(begin, end);
}
