// Distances in float64, and who wins by them. In an anonymous namespace for the reason in search.h.
#pragma once

#include <math.h>
#include <stdint.h>

#include "problem.h"

namespace {

// The float64 distances that decide, for up to eight codes: the sum over the dimensions in their
// order, without fused multiply-add. Every path of the package sums in this order.
inline void exact_distances(const float* z, const float* c, int64_t d, const int32_t* ids,
                            int count, double* out) {
  const float* code[8];
  double sum[8] = {};
  for (int j = 0; j < 8; ++j) code[j] = c + int64_t(ids[j < count ? j : 0]) * d;
  for (int64_t i = 0; i < d; ++i) {
    const double x = z[i];
    for (int j = 0; j < 8; ++j) {
      const double difference = x - code[j][i];
      sum[j] += difference * difference;
    }
  }
  for (int j = 0; j < count; ++j) out[j] = sum[j];
}

struct Winner {
  double distance = INFINITY;
  int64_t id = -1;

  void offer(double other, int64_t other_id) {
    if (other < distance || (other == distance && other_id < id)) {
      distance = other;
      id = other_id;
    }
  }

  void offer_all(const Problem& p, int64_t row, const int32_t* ids, int count) {
    double found[8];
    for (int first = 0; first < count; first += 8) {
      const int some = count - first < 8 ? count - first : 8;
      exact_distances(p.z + row * p.d, p.c, p.d, ids + first, some, found);
      for (int j = 0; j < some; ++j) offer(found[j], ids[first + j]);
    }
  }
};

// The plain search, for rows that the fast one must not judge.
inline int64_t scan(const Problem& p, int64_t row) {
  Winner winner;
  int32_t ids[8];
  for (int64_t first = 0; first < p.k; first += 8) {
    const int some = p.k - first < 8 ? int(p.k - first) : 8;
    for (int j = 0; j < some; ++j) ids[j] = int32_t(first + j);
    winner.offer_all(p, row, ids, some);
  }
  return winner.id < 0 ? 0 : winner.id;  // every distance was NaN
}

}  // namespace
