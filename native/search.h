// The nearest-code search that every instruction set shares. docs/nearest.md has the idea and the
// proof of the error band; the names there are the names here.
//
// An engine scores a block of rows against a panel of codes, fast and with a known error. Whatever
// lies inside the error band is remembered, and decided at the end by float64 distances.
//
// Everything sits in an anonymous namespace and uses no template of the standard library: this
// header is compiled once for each instruction set, and the linker must never give one set's code
// to another.
#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "exact.h"

namespace {

constexpr int kCapacity = 12;              // candidates that a row remembers before it decides
constexpr int64_t kBlockBytes = 256 << 10; // codes that stay in the L2 cache while rows pass by
constexpr int64_t kChunkBytes = 4 << 20;   // rows that are packed at a time
constexpr int64_t kChunkRows = 4096;
constexpr float kFar = 0x1p40f;            // longer rows are compared in float64 alone
constexpr float kUp = 1.001f;              // covers the rounding of norms and of bands themselves

// A panel's error bound is affine in two numbers of the row: residue * z_residue + norm * z_norm
// + flat. So one code of a huge norm widens the band of its own panel only.
struct Bound {
  float residue, norm, flat;
};

struct Rounding {
  float gamma;    // of float32 sums: (2 D + 16) 2^-24
  float eta;      // of the float64 distances that decide: (D + 4) 2^-53
  float tiny;     // of products that fall below the smallest normal number
  float up;       // kUp, and what a float32 sum of D squares may lose
};

inline Rounding rounding(int64_t d) {
  return {float(2 * d + 16) * 0x1p-24f * kUp, float(d + 4) * 0x1p-53f * kUp,
          float(d + 1) * 0x1p-80f, kUp + float(d) * 0x1p-22f};
}

// What packing a code tells of it: squared norms of the code, of the code as the engine sees it, and
// of the difference.
struct Packed {
  float square, seen, residue;
};

// Engines read whole vectors of the row that is packed, so it is filled up with zeros.
inline int64_t wide(int64_t d) { return (d + 31) / 32 * 32; }

// What is known of each row of a chunk while the codes pass by.
struct Rows {
  float* upper;       // no code that scores above it (by more than its own band) can win
  float* residue;     // |z - z as the engine sees it|
  float* norm;        // |z|
  float* slack;       // twice the float64 rounding that belongs to the row
  float* lower;       // [row][kCapacity]: score minus band of each candidate
  int32_t* id;        // [row][kCapacity]
  int32_t* count;
  Winner* winner;     // of candidates that were decided early
};

template <class Engine>
class Search {
 public:
  using Cell = typename Engine::Cell;
  static constexpr int kRows = Engine::kRows;
  static constexpr int kCodes = Engine::kCodes;

  explicit Search(const Problem& problem)
      : p(problem), r(rounding(problem.d)), depth(Engine::depth(problem.d)) {}
  ~Search() { free(memory); }
  Search(const Search&) = delete;

  // Returns whether the memory was there.
  bool run(int64_t begin, int64_t end) {
    // Somebody may have told this thread to flush denormals; before scaling they are data.
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before & ~0x8040u);
    bool has_memory = true;
    if (!p.is_finite) {
      for (int64_t row = begin; row < end; ++row) p.codes[row] = scan(p, row);
    } else if ((has_memory = allocate(end - begin))) {
      search(begin, end);
    }
    _mm_setcsr(before);
    return has_memory;
  }

 private:
  const Problem& p;
  const Rounding r;
  const int64_t depth;  // cells of a row or a code
  int64_t num_panels = 0, block_panels = 0, chunk_rows = 0, packed_from = -1, first_row = 0;
  void* memory = nullptr;
  Cell *row_cells = nullptr, *code_cells = nullptr;
  float *half = nullptr, *scratch = nullptr;  // scratch: one row, moved and scaled
  Bound* bound = nullptr;
  Rows rows{};

  void search(int64_t begin, int64_t end) {
    Engine::enter();
    for (int64_t first = begin; first < end; first += chunk_rows) {
      const int64_t count = end - first < chunk_rows ? end - first : chunk_rows;
      load_rows(first, count);
      for (int64_t panel = 0; panel < num_panels; panel += block_panels) {
        const int64_t some =
            num_panels - panel < block_panels ? num_panels - panel : block_panels;
        if (panel != packed_from) load_codes(panel, some);
        for (int64_t row = 0; row < count; row += kRows) sweep(row, panel, some);
      }
      for (int64_t row = 0; row < count; ++row) p.codes[first + row] = decide(first, row);
    }
    Engine::leave();
  }

  template <class T>
  void take(char*& at, T*& pointer, int64_t count) {
    pointer = reinterpret_cast<T*>(at);
    at += (count * int64_t(sizeof(T)) + 127) / 64 * 64;
  }

  int64_t carve(char* at) {
    char* start = at;
    const int64_t n = chunk_rows;
    take(at, row_cells, n * depth);
    take(at, code_cells, block_panels * kCodes * depth);
    take(at, half, block_panels * kCodes);
    take(at, bound, block_panels);
    take(at, scratch, wide(depth));
    take(at, rows.upper, n);
    take(at, rows.residue, n);
    take(at, rows.norm, n);
    take(at, rows.slack, n);
    take(at, rows.lower, n * kCapacity);
    take(at, rows.id, n * kCapacity);
    take(at, rows.count, n);
    take(at, rows.winner, n);
    return at - start;
  }

  bool allocate(int64_t n) {
    const int64_t cell_bytes = depth * int64_t(sizeof(Cell));
    num_panels = (p.k + kCodes - 1) / kCodes;
    block_panels = kBlockBytes / (cell_bytes * kCodes);
    block_panels = block_panels < 1 ? 1 : block_panels > num_panels ? num_panels : block_panels;
    chunk_rows = kChunkBytes / cell_bytes;
    chunk_rows = chunk_rows > kChunkRows ? kChunkRows : chunk_rows > n ? n : chunk_rows;
    chunk_rows = (chunk_rows < 1 ? 1 : chunk_rows) + kRows - 1;
    chunk_rows -= chunk_rows % kRows;
    const int64_t bytes = carve(nullptr);
    memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (memory == nullptr) return false;
    carve(static_cast<char*>(memory));
    return true;
  }

  // Move a row or a code by the frame's centre and scale it, into scratch.
  void place(const float* from) {
    const float* centre = p.centre;
    const float scale = p.scale;
    for (int64_t i = 0; i < p.d; ++i) scratch[i] = (from[i] - centre[i]) * scale;
    for (int64_t i = p.d; i < wide(depth); ++i) scratch[i] = 0;
  }

  void load_rows(int64_t first, int64_t count) {
    first_row = first;
    for (int64_t row = 0; row < (count + kRows - 1) / kRows * kRows; ++row) {
      bool usable = row < count;
      float square = 0, residue = 0;
      if (usable) {
        place(p.z + (first + row) * p.d);
        square = Engine::square(scratch, depth);
        usable = square < kFar * kFar;  // false for NaN as well
      }
      if (!usable) memset(scratch, 0, size_t(wide(depth)) * sizeof(float));
      residue = Engine::pack_row(scratch, depth, row_cells + row / kRows * kRows * depth,
                                 int(row % kRows));
      rows.norm[row] = usable ? sqrtf(square) * r.up : 0;
      rows.residue[row] = sqrtf(residue) * r.up;
      rows.slack[row] = usable ? 2 * r.eta * rows.norm[row] * rows.norm[row] : 0;
      rows.upper[row] = usable ? INFINITY : -INFINITY;
      rows.count[row] = 0;
      rows.winner[row] = Winner();
    }
  }

  void load_codes(int64_t first_panel, int64_t count) {
    for (int64_t panel = 0; panel < count; ++panel) {
      Cell* cells = code_cells + panel * kCodes * depth;
      float longest = 0, seen = 0, residue = 0;
      for (int j = 0; j < kCodes; ++j) {
        const int64_t code = (first_panel + panel) * kCodes + j;
        float* h = half + panel * kCodes + j;
        if (code < p.k) {
          place(p.c + code * p.d);
        } else {
          memset(scratch, 0, size_t(wide(depth)) * sizeof(float));
        }
        const Packed packed = Engine::pack_code(scratch, depth, cells, j);
        *h = code < p.k ? packed.square * 0.5f : INFINITY;
        longest = packed.square > longest ? packed.square : longest;
        seen = packed.seen > seen ? packed.seen : seen;
        residue = packed.residue > residue ? packed.residue : residue;
      }
      const float square = longest * r.up, norm = sqrtf(square);
      Bound& b = bound[panel];
      b.residue = sqrtf(seen) * r.up;
      b.norm = (sqrtf(residue) + 2 * r.gamma * norm) * r.up;
      b.flat = (r.gamma + r.eta) * square * r.up + r.tiny;
    }
    packed_from = first_panel;
  }

  // One block of rows against the packed panels.
  void sweep(int64_t row, int64_t first_panel, int64_t count) {
    alignas(64) float threshold[kRows], scores[kRows * kCodes];
    const float *upper = rows.upper + row, *residue = rows.residue + row, *norm = rows.norm + row;
    const Cell* cells = row_cells + row * depth;
    for (int64_t panel = 0; panel < count; ++panel) {
      const Bound b = bound[panel];
      for (int i = 0; i < kRows; ++i)
        threshold[i] = upper[i] + (b.residue * residue[i] + b.norm * norm[i] + b.flat);
      uint32_t hits = Engine::score(cells, code_cells + panel * kCodes * depth,
                                    half + panel * kCodes, depth, threshold, scores);
      for (; hits != 0; hits &= hits - 1) {
        const int i = __builtin_ctz(hits);
        consider(row + i, scores + i * kCodes, b, (first_panel + panel) * kCodes);
      }
    }
  }

  // Some score of this panel lies in the row's band: remember which, and narrow the band.
  __attribute__((noinline)) void consider(int64_t row, const float* scores, Bound b,
                                          int64_t first_code) {
    const float band = b.residue * rows.residue[row] + b.norm * rows.norm[row] + b.flat;
    const float bar = Engine::lowest(scores) + band + rows.slack[row];
    if (bar < rows.upper[row]) rows.upper[row] = bar;
    uint32_t hits = Engine::not_above(scores, rows.upper[row] + band);
    for (; hits != 0; hits &= hits - 1) {
      const int j = __builtin_ctz(hits);
      if (rows.count[row] == kCapacity) make_room(row);
      const int64_t at = row * kCapacity + rows.count[row]++;
      rows.lower[at] = scores[j] - band;
      rows.id[at] = int32_t(first_code + j);
    }
  }

  // Forget candidates that the band has left behind.
  void prune(int64_t row) {
    const int64_t at = row * kCapacity;
    int kept = 0;
    for (int i = 0; i < rows.count[row]; ++i) {
      if (rows.lower[at + i] > rows.upper[row]) continue;
      rows.lower[at + kept] = rows.lower[at + i];
      rows.id[at + kept++] = rows.id[at + i];
    }
    rows.count[row] = kept;
  }

  void make_room(int64_t row) {
    prune(row);
    if (rows.count[row] < kCapacity) return;
    rows.winner[row].offer_all(p, first_row + row, rows.id + row * kCapacity, kCapacity);
    rows.count[row] = 0;
  }

  int64_t decide(int64_t first, int64_t row) {
    if (rows.upper[row] == -INFINITY) return scan(p, first + row);
    prune(row);
    const int32_t* ids = rows.id + row * kCapacity;
    if (rows.count[row] == 1 && rows.winner[row].id < 0) return ids[0];
    rows.winner[row].offer_all(p, first + row, ids, rows.count[row]);
    return rows.winner[row].id;
  }
};

}  // namespace
