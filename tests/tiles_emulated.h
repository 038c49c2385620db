// The five tile operations of native/tiles.h in plain C++, so that the AMX engine runs anywhere.
#pragma once

#include <stdint.h>
#include <string.h>

namespace {

struct Tile {
  uint8_t bytes[16][64];
};

thread_local Tile emulated[8];
thread_local bool are_tiles_on = false;

inline void tiles_on() { are_tiles_on = true; }
inline void tiles_off() { are_tiles_on = false; }

inline float widened(const uint8_t* from) {
  uint32_t bits = uint32_t(from[0]) << 16 | uint32_t(from[1]) << 24;
  if ((bits & 0x7f800000u) == 0) bits &= 0x80000000u;  // the instruction takes denormals as zero
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

template <int tile>
inline void tile_load(const void* from, int64_t stride) {
  if (!are_tiles_on) __builtin_trap();
  for (int row = 0; row < 16; ++row)
    memcpy(emulated[tile].bytes[row], static_cast<const char*>(from) + row * stride, 64);
}

template <int tile>
inline void tile_store(void* to, int64_t stride) {
  if (!are_tiles_on) __builtin_trap();
  for (int row = 0; row < 16; ++row)
    memcpy(static_cast<char*>(to) + row * stride, emulated[tile].bytes[row], 64);
}

template <int sum, int rows, int codes>
inline void tile_dot() {
  for (int row = 0; row < 16; ++row)
    for (int pair = 0; pair < 16; ++pair)
      for (int code = 0; code < 16; ++code) {
        const uint8_t* a = emulated[rows].bytes[row] + 4 * pair;
        const uint8_t* b = emulated[codes].bytes[pair] + 4 * code;
        float value;
        memcpy(&value, emulated[sum].bytes[row] + 4 * code, sizeof value);
        value += widened(a) * widened(b) + widened(a + 2) * widened(b + 2);
        memcpy(emulated[sum].bytes[row] + 4 * code, &value, sizeof value);
      }
}

}  // namespace
