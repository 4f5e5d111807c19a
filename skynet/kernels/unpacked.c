// Products of more rows than a block's codes are multiplied with while they are in registers: each
// group is unpacked to float32 once, in the cache. Operations are those of quantised.c in the same
// order, so that a row has the same bits.
#include "codes.h"

// Codes of a group, (group, 32), and its scales and minimums.
typedef struct {
  float codes[MAX_UNPACKED * BLOCK], scales[BLOCK], minimums[BLOCK];
} unpacked;

static inline __attribute__((always_inline)) void unpack_group(int is_q4, layout form,
                                                               const uint8_t *record,
                                                               unpacked *to) {
  const uint8_t *codes = record + factor_bytes(form);
  for (int part = 0; part < PARTS; part++) {
    floats scale = factor(record, part, form.scale_bytes), minimum = scale;
    if (is_q4)
      minimum = factor(record + BLOCK * form.scale_bytes, part, form.scale_bytes);
    memcpy(to->scales + part * LANES, &scale, sizeof scale);
    memcpy(to->minimums + part * LANES, &minimum, sizeof minimum);
    for (long input = 0; input < form.group; input += WORD_INPUTS) {
      words word = {0};
      if (is_q4)
        word = word_q4(codes + input * (BLOCK / 2), part);
      UNROLLED for (int k = 0; k < WORD_INPUTS; k++) {
        floats code = is_q4 ? code_q4(word, k) : code_q8(codes + (input + k) * BLOCK, part);
        memcpy(to->codes + (input + k) * BLOCK + part * LANES, &code, sizeof code);
      }
    }
  }
}

// Adds a group to the sums of `rows` rows, (rows, 32); with the same operations as `multiply`.
static inline __attribute__((always_inline)) void
multiply_unpacked(int rows, int is_q4, const unpacked *from, layout form, const float *x,
                  const float *sums_of_x, float *total) {
  long groups = form.inputs / form.group;
  int parts = CHUNK(rows);
  UNROLLED for (int first = 0; first < PARTS; first += parts) {
    floats sums[MAX_ROWS][PARTS][2];
    UNROLLED for (int row = 0; row < rows; row++)
      UNROLLED for (int part = 0; part < parts; part++)
        sums[row][part][0] = sums[row][part][1] = (floats){0};
    const float *codes = from->codes + first * LANES;
    for (long input = 0; input < form.group; input += 2, codes += 2 * BLOCK)
      UNROLLED for (int k = 0; k < 2; k++)
        UNROLLED for (int part = 0; part < parts; part++) {
          floats code = load(codes + k * BLOCK + part * LANES);
          UNROLLED for (int row = 0; row < rows; row++)
            sums[row][part][k] = add_product(sums[row][part][k], code,
                                             splat(x[row * form.inputs + input + k]));
        }
    UNROLLED for (int part = 0; part < parts; part++) {
      floats scale = load(from->scales + (first + part) * LANES);
      floats minimum = load(from->minimums + (first + part) * LANES);
      UNROLLED for (int row = 0; row < rows; row++) {
        float *at = total + row * BLOCK + (first + part) * LANES;
        floats result = load(at), sum = sums[row][part][0] + sums[row][part][1];
        result = add_product(result, scale, sum);
        if (is_q4)
          result = add_product(result, minimum, splat(sums_of_x[row * groups]));
        memcpy(at, &result, sizeof result);
      }
    }
  }
}

typedef void (*unpacked_function)(const unpacked *, layout, const float *, const float *, float *);

#define DEFINE_UNPACKED(ROWS, BITS)                                                                \
  static void unpacked_q##BITS##_##ROWS(const unpacked *from, layout form, const float *x,         \
                                        const float *sums, float *total) {                         \
    multiply_unpacked(ROWS, BITS == 4, from, form, x, sums, total);                                \
  }
#define DEFINE_BOTH(ROWS) DEFINE_UNPACKED(ROWS, 8) DEFINE_UNPACKED(ROWS, 4)

DEFINE_BOTH(1)
DEFINE_BOTH(2)
#if MAX_ROWS > 2
DEFINE_BOTH(3)
#endif
#if MAX_ROWS > 3
DEFINE_BOTH(4)
#define ALL_UNPACKED(BITS)                                                                         \
  { 0, unpacked_q##BITS##_1, unpacked_q##BITS##_2, unpacked_q##BITS##_3, unpacked_q##BITS##_4 }
#elif MAX_ROWS > 2
#define ALL_UNPACKED(BITS)                                                                         \
  { 0, unpacked_q##BITS##_1, unpacked_q##BITS##_2, unpacked_q##BITS##_3 }
#else
#define ALL_UNPACKED(BITS)                                                                         \
  { 0, unpacked_q##BITS##_1, unpacked_q##BITS##_2 }
#endif

// [is_q4][rows]
static const unpacked_function UNPACKED[2][MAX_ROWS + 1] = {ALL_UNPACKED(8), ALL_UNPACKED(4)};

void multiply_many(const quantised_job *the, long block, long row, long rows) {
  layout form = the->form;
  long groups = form.inputs / form.group, record = record_bytes(form);
  long rest = the->outputs - block * BLOCK, width = rest < BLOCK ? rest : BLOCK;
  const uint8_t *weights = the->weights + block * groups * record;
  const float *x = the->x + row * form.inputs, *sums = the->sums + row * groups;
  float total[MANY_ROWS * BLOCK];
  unpacked group;
  for (long each = 0; each < rows; each++)
    memcpy(total + each * BLOCK, the->bias + block * BLOCK, BLOCK * sizeof(float));
  for (long at = 0; at < groups; at++, weights += record) {
    if (form.is_q4)
      unpack_group(1, form, weights, &group);
    else
      unpack_group(0, form, weights, &group);
    for (long each = 0; each < rows; each += MAX_ROWS) {
      long count = rows - each < MAX_ROWS ? rows - each : MAX_ROWS;
      UNPACKED[form.is_q4][count](&group, form, x + each * form.inputs + at * form.group,
                                  sums + each * groups + at, total + each * BLOCK);
    }
  }
  for (long each = 0; each < rows; each++)
    memcpy(the->y + (row + each) * the->y_stride + block * BLOCK, total + each * BLOCK,
           width * sizeof(float));
}

