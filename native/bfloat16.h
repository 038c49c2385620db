// Rounding to bfloat16, for the two engines that score in it: a code is a panel's column of pairs,
// and what rounding took away is measured, because the error band is made of it.
#pragma once

#include "wide512.h"

namespace {

// Sixteen numbers rounded to the nearest bfloat16, in the low halves of 32-bit lanes.
inline __m512i round16(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  return _mm512_srli_epi32(_mm512_add_epi32(bits, up), 16);
}

inline __m512 widen16(__m512i half) { return _mm512_castsi512_ps(_mm512_slli_epi32(half, 16)); }

struct Bfloat16 : Scores32 {
  using Cell = uint16_t;

  // [d / 2][32 codes][2]: what both dot-product instructions read.
  static Packed pack_code(const float* x, int64_t d, uint16_t* panel, int j) {
    __m512 square = _mm512_setzero_ps(), seen = square, residue = square;
    alignas(64) uint16_t rounded[32];
    for (int64_t t = 0; t < d; t += 32) {
      for (int part = 0; part < 32; part += 16) {
        const __m512 v = _mm512_loadu_ps(x + t + part);
        const __m512i r = round16(v);
        const __m512 w = widen16(r), gap = _mm512_sub_ps(v, w);
        square = _mm512_fmadd_ps(v, v, square);
        seen = _mm512_fmadd_ps(w, w, seen);
        residue = _mm512_fmadd_ps(gap, gap, residue);
        _mm256_store_si256(reinterpret_cast<__m256i*>(rounded + part), _mm512_cvtepi32_epi16(r));
      }
      const int64_t pairs = (d - t < 32 ? d - t : 32) / 2;
      uint32_t* out = reinterpret_cast<uint32_t*>(panel) + t / 2 * kCodes + j;
      for (int64_t s = 0; s < pairs; ++s) memcpy(out + s * kCodes, rounded + 2 * s, 4);
    }
    return {_mm512_reduce_add_ps(square), _mm512_reduce_add_ps(seen),
            _mm512_reduce_add_ps(residue)};
  }

  // The negated row in bfloat16, d cells in a row; returns the squared norm of what rounding took.
  static float round_row(const float* x, int64_t d, uint16_t* out) {
    __m512 residue = _mm512_setzero_ps();
    for (int64_t t = 0; t < d; t += 16) {
      const __m512 v = _mm512_loadu_ps(x + t);
      const __m512i r = round16(v);
      const __m512 gap = _mm512_sub_ps(v, widen16(r));
      residue = _mm512_fmadd_ps(gap, gap, residue);
      const __m512i negated = _mm512_xor_si512(r, _mm512_set1_epi32(0x8000));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + t), _mm512_cvtepi32_epi16(negated));
    }
    return _mm512_reduce_add_ps(residue);
  }

  static float square(const float* x, int64_t d) { return square512(x, d); }
};

}  // namespace
