// What the two engines with 512-bit registers have in common.
#pragma once

#include <immintrin.h>

#include "search.h"

namespace {

inline float square512(const float* x, int64_t d) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < d; i += 16) {
    const __m512 v = _mm512_loadu_ps(x + i);
    sum = _mm512_fmadd_ps(v, v, sum);
  }
  return _mm512_reduce_add_ps(sum);
}

// A panel's 32 scores of one row.
struct Scores32 {
  static constexpr int kCodes = 32;

  static float lowest(const float* s) {
    return _mm512_reduce_min_ps(_mm512_min_ps(_mm512_load_ps(s), _mm512_load_ps(s + 16)));
  }

  static uint32_t not_above(const float* s, float bar) {
    const __m512 b = _mm512_set1_ps(bar);
    return uint32_t(_mm512_cmp_ps_mask(_mm512_load_ps(s), b, _CMP_LE_OQ)) |
           uint32_t(_mm512_cmp_ps_mask(_mm512_load_ps(s + 16), b, _CMP_LE_OQ)) << 16;
  }
};

// Twelve rows by 32 codes fill 24 of the 32 registers. Once every score is there, tell which rows
// have one that is not above their threshold; only then are scores worth storing.
constexpr int kTileRows = 12;

inline uint32_t hits512(const __m512 (&sum)[kTileRows][2], const float* threshold,
                        float* scores) {
  uint32_t hits = 0;
#pragma GCC unroll 12
  for (int i = 0; i < kTileRows; ++i) {
    const __m512 low = _mm512_min_ps(sum[i][0], sum[i][1]);
    const uint32_t some = _mm512_cmp_ps_mask(low, _mm512_set1_ps(threshold[i]), _CMP_LE_OQ);
    hits |= uint32_t(some != 0) << i;
  }
  if (__builtin_expect(hits != 0, 0)) {
#pragma GCC unroll 12
    for (int i = 0; i < kTileRows; ++i) {
      _mm512_store_ps(scores + i * 32, sum[i][0]);
      _mm512_store_ps(scores + i * 32 + 16, sum[i][1]);
    }
  }
  return hits;
}

}  // namespace
