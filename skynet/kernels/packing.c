// Weights of numbers from the plain layout, (outputs, inputs), to the blocks of products.c, and back.
//
// A block of 16-bit numbers is moved as words, two outputs each, so that both widths are moved by
// transposing squares of 4 x 4 words in registers.
//
#include <stdint.h>
#include <string.h>

#include "numbers.h"
#include "pool.h"

#define SIDE 4  // of a square, words
#define TILE 32 // inputs that are moved at a time: few lines of each row stay in the cache
#define ALWAYS static inline __attribute__((always_inline))

typedef uint32_t words __attribute__((vector_size(SIDE * 4), aligned(4)));
typedef uint16_t shorts __attribute__((vector_size(SIDE * 2), aligned(2)));

typedef struct {
  uint8_t *plain, *packed;
  long inputs, outputs;
  int number;
} layout;

// The output that is in a half of a word of a block; of float32, the word's output.
ALWAYS int output_of(int number, int word, int half) {
  if (number == FLOAT32)
    return word;
  return number == BFLOAT16 ? word + half * BLOCK / 2 : 2 * word + half;
}

ALWAYS int words_of(int number) { return number == FLOAT32 ? BLOCK : BLOCK / 2; }

ALWAYS uint8_t *plain_at(const layout *of, int number, long output, long input) {
  return of->plain + (output * of->inputs + input) * number_bytes(number);
}

ALWAYS void transpose(words of[SIDE]) {
  words a = __builtin_shufflevector(of[0], of[1], 0, 4, 1, 5);
  words b = __builtin_shufflevector(of[2], of[3], 0, 4, 1, 5);
  words c = __builtin_shufflevector(of[0], of[1], 2, 6, 3, 7);
  words d = __builtin_shufflevector(of[2], of[3], 2, 6, 3, 7);
  of[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
  of[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
  of[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5);
  of[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
}

ALWAYS shorts load_shorts(const uint8_t *from) {
  shorts value;
  memcpy(&value, from, sizeof value);
  return value;
}

// A word of SIDE inputs, from the plain layout.
ALWAYS words read_row(const layout *of, int number, long block, int word, long input) {
  uint8_t *low = plain_at(of, number, block * BLOCK + output_of(number, word, 0), input);
  if (number == FLOAT32) {
    words value;
    memcpy(&value, low, sizeof value);
    return value;
  }
  uint8_t *high = plain_at(of, number, block * BLOCK + output_of(number, word, 1), input);
  return __builtin_convertvector(load_shorts(low), words) |
         __builtin_convertvector(load_shorts(high), words) << 16;
}

ALWAYS void write_row(const layout *of, int number, long block, int word, long input, words value) {
  uint8_t *low = plain_at(of, number, block * BLOCK + output_of(number, word, 0), input);
  if (number == FLOAT32) {
    memcpy(low, &value, sizeof value);
    return;
  }
  uint8_t *high = plain_at(of, number, block * BLOCK + output_of(number, word, 1), input);
  shorts lows = __builtin_convertvector(value & 0xffff, shorts);
  shorts highs = __builtin_convertvector(value >> 16, shorts);
  memcpy(low, &lows, sizeof lows);
  memcpy(high, &highs, sizeof highs);
}

// SIDE words of SIDE inputs.
ALWAYS void move_square(const layout *of, int number, int packs, long block, int word, long input) {
  int stride = words_of(number);
  uint32_t *packed = (uint32_t *)of->packed + (block * of->inputs + input) * stride + word;
  words square[SIDE];
  if (packs) {
    for (int row = 0; row < SIDE; row++)
      square[row] = read_row(of, number, block, word + row, input);
    transpose(square);
    for (int row = 0; row < SIDE; row++)
      memcpy(packed + row * stride, &square[row], sizeof(words));
  } else {
    for (int row = 0; row < SIDE; row++)
      memcpy(&square[row], packed + row * stride, sizeof(words));
    transpose(square);
    for (int row = 0; row < SIDE; row++)
      write_row(of, number, block, word + row, input, square[row]);
  }
}

// Inputs [first, stop) one number at a time. Outputs that the last block lacks are zeros.
ALWAYS void move_numbers(const layout *of, int number, int packs, long block, long first,
                         long stop) {
  long size = number_bytes(number), width = of->outputs - block * BLOCK;
  for (int word = 0; word < words_of(number); word++)
    for (int half = 0; half < 4 / size; half++) {
      int output = output_of(number, word, half);
      for (long input = first; input < stop; input++) {
        uint8_t *packed = of->packed + (block * of->inputs + input) * BLOCK * size +
                          word * 4 + half * size;
        uint8_t *plain = plain_at(of, number, block * BLOCK + output, input);
        if (output >= width && packs)
          memset(packed, 0, size);
        else if (output < width)
          memcpy(packs ? packed : plain, packs ? plain : packed, size);
      }
    }
}

ALWAYS void move_block(const layout *of, int number, int packs, long block) {
  long whole = (block + 1) * BLOCK <= of->outputs ? of->inputs / SIDE * SIDE : 0;
  for (long first = 0; first < whole; first += TILE)
    for (int word = 0; word < words_of(number); word += SIDE)
      for (long input = first; input < whole && input < first + TILE; input += SIDE)
        move_square(of, number, packs, block, word, input);
  move_numbers(of, number, packs, block, whole, of->inputs);
}

static void pack_block(const void *argument, long block) {
  const layout *of = argument;
  if (of->number == BFLOAT16)
    move_block(of, BFLOAT16, 1, block);
  else if (of->number == FLOAT16)
    move_block(of, FLOAT16, 1, block);
  else
    move_block(of, FLOAT32, 1, block);
}

static void unpack_block(const void *argument, long block) {
  const layout *of = argument;
  if (of->number == BFLOAT16)
    move_block(of, BFLOAT16, 0, block);
  else if (of->number == FLOAT16)
    move_block(of, FLOAT16, 0, block);
  else
    move_block(of, FLOAT32, 0, block);
}

// From `plain` to `packed`, which has room for whole blocks.
void skynet_pack(uint8_t *plain, uint8_t *packed, long inputs, long outputs, int number,
                 int threads) {
  layout of = {plain, packed, inputs, outputs, number};
  run_blocks(pack_block, &of, (outputs + BLOCK - 1) / BLOCK, threads);
}

// From `packed` to `plain`.
void skynet_dense(uint8_t *plain, uint8_t *packed, long inputs, long outputs, int number,
                  int threads) {
  layout of = {plain, packed, inputs, outputs, number};
  run_blocks(unpack_block, &of, (outputs + BLOCK - 1) / BLOCK, threads);
}
