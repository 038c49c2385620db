// The five operations on AMX tiles that the search needs, by the processor's own instructions.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace {

// All eight tiles hold 16 rows of 64 bytes.
inline void tiles_on() {
  struct alignas(64) {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } config;
  memset(&config, 0, sizeof config);
  config.palette = 1;
  for (int tile = 0; tile < 8; ++tile) {
    config.bytes[tile] = 64;
    config.rows[tile] = 16;
  }
  _tile_loadconfig(&config);
}

inline void tiles_off() { _tile_release(); }

// The intrinsics take literal numbers only, so each is spelled out behind a template.
template <int tile>
inline void tile_load(const void* from, int64_t stride);
template <int tile>
inline void tile_store(void* to, int64_t stride);
template <int sum, int rows, int codes>
inline void tile_dot();

#define LOAD(tile) \
  template <>      \
  inline void tile_load<tile>(const void* from, int64_t stride) { _tile_loadd(tile, from, stride); }
#define STORE(tile) \
  template <>       \
  inline void tile_store<tile>(void* to, int64_t stride) { _tile_stored(tile, to, stride); }
#define DOT(sum, rows, codes) \
  template <>                 \
  inline void tile_dot<sum, rows, codes>() { _tile_dpbf16ps(sum, rows, codes); }

LOAD(0) LOAD(1) LOAD(2) LOAD(3) LOAD(4) LOAD(5) LOAD(6) LOAD(7)
STORE(0) STORE(1) STORE(2) STORE(3)
DOT(0, 4, 6) DOT(1, 4, 7) DOT(2, 5, 6) DOT(3, 5, 7)

#undef LOAD
#undef STORE
#undef DOT

}  // namespace
