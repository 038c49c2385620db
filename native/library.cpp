// The library's C interface: which engines this processor can run, and the search itself.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "problem.h"

#if defined(__x86_64__)
#define QVAE_X86 1
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace {

enum Engine { kAvx2 = 0, kAvx512 = 1, kAvx512Bf16 = 2, kAmx = 3, kEngines = 4 };

#ifdef QVAE_X86

// Which register states the operating system saves (XCR0).
uint64_t saved_states() {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t(high) << 32 | low;
}

// Linux hands out the tiles' 8 KB of state only to processes that ask.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

unsigned find_engines() {
  unsigned a, b, c, d, leaf1c, leaf7b, leaf7d, leaf71a = 0, found = 0;
  if (!__get_cpuid(1, &a, &b, &leaf1c, &d)) return 0;
  if (!(leaf1c >> 27 & 1) || !(leaf1c >> 12 & 1)) return 0;  // OSXSAVE, FMA
  if (!__get_cpuid_count(7, 0, &a, &leaf7b, &c, &leaf7d)) return 0;
  if (a >= 1) __get_cpuid_count(7, 1, &leaf71a, &b, &c, &d);
  const uint64_t saved = saved_states();
  if ((saved & 0x6) != 0x6 || !(leaf7b >> 5 & 1)) return 0;
  found |= 1u << kAvx2;
  const unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
  if ((saved & 0xe6) != 0xe6 || (leaf7b & avx512) != avx512) return found;
  found |= 1u << kAvx512;
  if (leaf71a >> 5 & 1) found |= 1u << kAvx512Bf16;
  const unsigned amx = 1u << 22 | 1u << 24;  // BF16, TILE
  if ((saved >> 17 & 3) == 3 && (leaf7d & amx) == amx && may_use_tiles()) found |= 1u << kAmx;
  return found;
}

#else

unsigned find_engines() { return 0; }

#endif

bool run(int engine, const Problem& p, int64_t begin, int64_t end) {
#ifdef QVAE_X86
  switch (engine) {
    case kAvx2: return search_avx2(p, begin, end);
    case kAvx512: return search_avx512(p, begin, end);
    case kAvx512Bf16: return search_avx512bf16(p, begin, end);
    case kAmx: return search_amx(p, begin, end);
  }
#endif
  return false;
}

// The middle of a few codes, coordinate by coordinate: near the codes even if one is far away.
// Any centre is right; a near one keeps the band narrow.
void find_centre(const Problem& p, float* centre) {
  constexpr int kSample = 15;
  float sample[kSample];
  const int64_t count = p.k < kSample ? p.k : kSample;
  for (int64_t i = 0; i < p.d; ++i) {
    for (int64_t s = 0; s < count; ++s) {
      const float x = p.c[(s * p.k / count) * p.d + i];
      int64_t at = s;
      for (; at > 0 && sample[at - 1] > x; --at) sample[at] = sample[at - 1];
      sample[at] = x;
    }
    centre[i] = isfinite(sample[count / 2]) ? sample[count / 2] : 0;
  }
}

// A power of two that brings the largest coordinate of a code to [1, 2). The bits of a positive
// float32 order as it does, with infinity and NaN above all, and compare many at a time.
void find_scale(Problem& p, const float* centre) {
  constexpr int32_t kInfinity = 0x7f800000;
  int32_t largest = 0;
  for (int64_t k = 0; k < p.k; ++k) {
    const float* c = p.c + k * p.d;
    int32_t most = 0;
    for (int64_t i = 0; i < p.d; ++i) {
      const float x = c[i] - centre[i];
      int32_t bits;
      memcpy(&bits, &x, sizeof bits);
      bits &= 0x7fffffff;
      most = bits > most ? bits : most;
    }
    largest = most > largest ? most : largest;
  }
  float x;
  memcpy(&x, &largest, sizeof x);
  p.is_finite = largest < kInfinity;
  int exponent = largest > 0 && p.is_finite ? -ilogbf(x) : 0;
  exponent = exponent > 126 ? 126 : exponent < -126 ? -126 : exponent;
  p.scale = ldexpf(1, exponent);
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// A bit for each engine that this processor can run, in the order of Engine.
EXPORT unsigned qvae_engines() { return find_engines(); }

// Write the nearest code of each row. 0: done; 1: no such engine; 2: no memory.
EXPORT int qvae_nearest(int engine, const float* z, const float* c, int64_t n, int64_t k, int64_t d,
                        int64_t* codes, int threads) try {
  static const unsigned known = find_engines();
  if (engine < 0 || engine >= kEngines || !(known >> engine & 1)) return 1;
  std::vector<float> centre(static_cast<size_t>(d));
  Problem p = {z, c, n, k, d, codes, centre.data(), 1, true};
  find_centre(p, centre.data());
  find_scale(p, centre.data());
  // Each thread packs the codes for itself, which pays from a few hundred rows on.
  const int64_t most = n / 256 > 1 ? n / 256 : 1;
  const int64_t count = threads < most ? threads : most;
  std::vector<char> done(static_cast<size_t>(count), 0);
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(count));
  const auto work = [&](int64_t t) {
    done[t] = run(engine, p, n * t / count, n * (t + 1) / count);
  };
  for (int64_t t = 1; t < count; ++t) {
    try {
      others.emplace_back(work, t);
    } catch (const std::system_error&) {  // no thread to be had: do its part here
      work(t);
    }
  }
  work(0);
  for (std::thread& other : others) other.join();
  for (char each : done)
    if (!each) return 2;
  return 0;
} catch (const std::bad_alloc&) {
  return 2;
}
