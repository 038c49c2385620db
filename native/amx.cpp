// AMX: sixteen rows by sixteen codes by 32 dimensions in one instruction, in bfloat16.
#include "bfloat16.h"
#ifdef QVAE_EMULATE_TILES
#include "tiles_emulated.h"  // tests/: the same five operations in plain C++
#else
#include "tiles.h"
#endif

namespace {

struct Amx : Bfloat16 {
  static constexpr int kRows = 32;

  static int64_t depth(int64_t d) { return (d + 31) / 32 * 32; }
  static void enter() { tiles_on(); }
  static void leave() { tiles_off(); }

  static float pack_row(const float* x, int64_t d, uint16_t* block, int i) {
    return round_row(x, d, block + i * d);
  }

  // Tiles 0 to 3 hold the scores of 32 rows by 32 codes, 4 and 5 rows, 6 and 7 codes.
  static uint32_t score(const uint16_t* rows, const uint16_t* codes, const float* half, int64_t d,
                        const float* threshold, float* scores) {
    tile_load<0>(half, 0);  // a stride of 0: each row of scores starts at the halved norms
    tile_load<1>(half + 16, 0);
    tile_load<2>(half, 0);
    tile_load<3>(half + 16, 0);
    const int64_t stride = d * 2;
    for (int64_t t = 0; t < d; t += 32, rows += 32, codes += 32 * kCodes) {
      tile_load<4>(rows, stride);
      tile_load<6>(codes, 4 * kCodes);
      tile_load<7>(codes + 32, 4 * kCodes);
      tile_dot<0, 4, 6>();
      tile_dot<1, 4, 7>();
      tile_load<5>(rows + 16 * d, stride);
      tile_dot<2, 5, 6>();
      tile_dot<3, 5, 7>();
    }
    tile_store<0>(scores, 4 * kCodes);
    tile_store<1>(scores + 16, 4 * kCodes);
    tile_store<2>(scores + 16 * kCodes, 4 * kCodes);
    tile_store<3>(scores + 16 * kCodes + 16, 4 * kCodes);
    uint32_t hits = 0;
    for (int i = 0; i < kRows; ++i) {
      const float* s = scores + i * kCodes;
      const __m512 low = _mm512_min_ps(_mm512_load_ps(s), _mm512_load_ps(s + 16));
      const uint32_t some = _mm512_cmp_ps_mask(low, _mm512_set1_ps(threshold[i]), _CMP_LE_OQ);
      hits |= uint32_t(some != 0) << i;
    }
    return hits;
  }
};

}  // namespace

bool search_amx(const Problem& p, int64_t begin, int64_t end) {
  return Search<Amx>(p).run(begin, end);
}
