// AVX2 and FMA: float32 scores in 256-bit registers.
#include <immintrin.h>

#include "search.h"

namespace {

struct Avx2 {
  using Cell = float;
  static constexpr int kRows = 6, kCodes = 16;  // 12 of the 16 registers hold sums

  static int64_t depth(int64_t d) { return d; }
  static void enter() {}
  static void leave() {}

  static float square(const float* x, int64_t d) {
    __m256 sum = _mm256_setzero_ps();
    for (int64_t t = 0; t < d; t += 8) {
      const __m256 v = _mm256_loadu_ps(x + t);
      sum = _mm256_fmadd_ps(v, v, sum);
    }
    alignas(32) float part[8];
    _mm256_store_ps(part, sum);
    return ((part[0] + part[1]) + (part[2] + part[3])) +
           ((part[4] + part[5]) + (part[6] + part[7]));
  }

  static float pack_row(const float* x, int64_t d, float* block, int i) {
    for (int64_t t = 0; t < d; ++t) block[t * kRows + i] = -x[t];
    return 0;
  }

  static Packed pack_code(const float* x, int64_t d, float* panel, int j) {
    for (int64_t t = 0; t < d; ++t) panel[t * kCodes + j] = x[t];
    return {square(x, d), 0, 0};
  }

  static float lowest(const float* s) {
    float low = s[0];
    for (int j = 1; j < kCodes; ++j) low = s[j] < low ? s[j] : low;
    return low;
  }

  static uint32_t not_above(const float* s, float bar) {
    const __m256 b = _mm256_set1_ps(bar);
    const __m256 first = _mm256_cmp_ps(_mm256_load_ps(s), b, _CMP_LE_OQ);
    const __m256 second = _mm256_cmp_ps(_mm256_load_ps(s + 8), b, _CMP_LE_OQ);
    return uint32_t(_mm256_movemask_ps(first)) | uint32_t(_mm256_movemask_ps(second)) << 8;
  }

  static uint32_t score(const float* rows, const float* codes, const float* half, int64_t d,
                        const float* threshold, float* scores) {
    __m256 sum[kRows][2];
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) {
      sum[i][0] = _mm256_load_ps(half);
      sum[i][1] = _mm256_load_ps(half + 8);
    }
    for (int64_t t = 0; t < d; ++t, rows += kRows, codes += kCodes) {
      const __m256 c0 = _mm256_load_ps(codes), c1 = _mm256_load_ps(codes + 8);
#pragma GCC unroll 6
      for (int i = 0; i < kRows; ++i) {
        const __m256 z = _mm256_broadcast_ss(rows + i);
        sum[i][0] = _mm256_fmadd_ps(z, c0, sum[i][0]);
        sum[i][1] = _mm256_fmadd_ps(z, c1, sum[i][1]);
      }
    }
    uint32_t hits = 0;
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) {
      const __m256 low = _mm256_min_ps(sum[i][0], sum[i][1]);
      const __m256 some = _mm256_cmp_ps(low, _mm256_broadcast_ss(threshold + i), _CMP_LE_OQ);
      hits |= uint32_t(_mm256_movemask_ps(some) != 0) << i;
    }
    if (__builtin_expect(hits != 0, 0)) {
#pragma GCC unroll 6
      for (int i = 0; i < kRows; ++i) {
        _mm256_store_ps(scores + i * kCodes, sum[i][0]);
        _mm256_store_ps(scores + i * kCodes + 8, sum[i][1]);
      }
    }
    return hits;
  }
};

}  // namespace

bool search_avx2(const Problem& p, int64_t begin, int64_t end) {
  return Search<Avx2>(p).run(begin, end);
}
