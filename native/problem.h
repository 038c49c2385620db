// What is searched, and in which frame of reference.
#pragma once

#include <stdint.h>

struct Problem {
  const float* z;       // [n][d]
  const float* c;       // [k][d]
  int64_t n, k, d;
  int64_t* codes;       // [n], the answer
  const float* centre;  // [d]: scores are taken of (x - centre) * scale
  float scale;          // a power of two
  bool is_finite;       // whether every code is finite in that frame
};

// One engine for rows [begin, end); false where memory ran out.
bool search_avx2(const Problem& p, int64_t begin, int64_t end);
bool search_avx512(const Problem& p, int64_t begin, int64_t end);
bool search_avx512bf16(const Problem& p, int64_t begin, int64_t end);
bool search_amx(const Problem& p, int64_t begin, int64_t end);
