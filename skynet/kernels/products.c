// Products of float32 activations with bfloat16 weights, in float32: y = x W^T + b.
//
// A weight is packed into blocks of 32 outputs: block b holds, for each input i, the 32 weights
// W[32 b + j, i]. The lanes of a vector are outputs, so that no sum crosses lanes, and a block is
// read from memory once, in order. Two weights share 32 bits: output j the low half, output 16 + j
// the high half; a bfloat16 number becomes float32 by a shift or a mask.
//
// Plain C with vectors of LANES floats: the compiler's -march decides the instructions.

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#if defined(__AVX512F__)
#define LANES 16
#define MAX_ROWS 4
#elif defined(__AVX2__)
#define LANES 8
#define MAX_ROWS 3
#else
#define LANES 4
#define MAX_ROWS 2
#endif

#define BLOCK 32
#define PARTS (BLOCK / 2 / LANES)
#define AHEAD 64 // inputs between the weights in use and those being prefetched

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE() __asm__ __volatile__("yield")
#endif

typedef float floats __attribute__((vector_size(LANES * 4), aligned(4)));
typedef uint32_t pairs __attribute__((vector_size(LANES * 4), aligned(4)));

static inline floats load(const float *from) {
  floats value;
  memcpy(&value, from, sizeof value);
  return value;
}

// One block of outputs for ROWS rows of x. Rows of x and y are `x_stride` and `y_stride` floats
// apart; `bias` has a float for each output of the block.
#define DEFINE_BLOCK(ROWS)                                                                         \
  static void block_##ROWS(const uint16_t *weights, const float *bias, const float *x,             \
                           long x_stride, float *y, long y_stride, long inputs) {                  \
    floats low[ROWS][PARTS], high[ROWS][PARTS];                                                    \
    for (int row = 0; row < ROWS; row++)                                                           \
      for (int part = 0; part < PARTS; part++) {                                                   \
        low[row][part] = load(bias + part * LANES);                                                \
        high[row][part] = load(bias + BLOCK / 2 + part * LANES);                                   \
      }                                                                                            \
    for (long input = 0; input < inputs; input++) {                                                \
      const uint16_t *column = weights + input * BLOCK;                                            \
      __builtin_prefetch(column + AHEAD * BLOCK, 0, 3);                                            \
      floats low_weights[PARTS], high_weights[PARTS];                                              \
      for (int part = 0; part < PARTS; part++) {                                                   \
        pairs packed;                                                                              \
        memcpy(&packed, column + part * 2 * LANES, sizeof packed);                                 \
        low_weights[part] = (floats)(packed << 16);                                                \
        high_weights[part] = (floats)(packed & 0xffff0000u);                                       \
      }                                                                                            \
      for (int row = 0; row < ROWS; row++) {                                                       \
        float value = x[row * x_stride + input];                                                   \
        for (int part = 0; part < PARTS; part++) {                                                 \
          low[row][part] += low_weights[part] * value;                                             \
          high[row][part] += high_weights[part] * value;                                           \
        }                                                                                          \
      }                                                                                            \
    }                                                                                              \
    for (int row = 0; row < ROWS; row++)                                                           \
      for (int part = 0; part < PARTS; part++) {                                                   \
        memcpy(y + row * y_stride + part * LANES, &low[row][part], sizeof(floats));                \
        memcpy(y + row * y_stride + BLOCK / 2 + part * LANES, &high[row][part], sizeof(floats));   \
      }                                                                                            \
  }

DEFINE_BLOCK(1)
DEFINE_BLOCK(2)
#if MAX_ROWS > 2
DEFINE_BLOCK(3)
#endif
#if MAX_ROWS > 3
DEFINE_BLOCK(4)
#endif

typedef void (*block_function)(const uint16_t *, const float *, const float *, long, float *, long,
                               long);
static const block_function BLOCKS[MAX_ROWS + 1] = {
    0,       block_1, block_2,
#if MAX_ROWS > 2
    block_3,
#endif
#if MAX_ROWS > 3
    block_4,
#endif
};

// What a call computes.
typedef struct {
  const uint16_t *weights;
  const float *bias, *x;
  float *y;
  long rows, inputs, outputs; // x (rows, inputs) and y (rows, outputs), both contiguous
} job;

static void multiply_block(const job *the, long block) {
  const uint16_t *weights = the->weights + block * BLOCK * the->inputs;
  const float *bias = the->bias + block * BLOCK;
  float *y = the->y + block * BLOCK;
  long width = the->outputs - block * BLOCK;
  float edge[MAX_ROWS * BLOCK]; // of the last block, which y may lack room for
  for (long row = 0; row < the->rows; row += MAX_ROWS) {
    long rows = the->rows - row < MAX_ROWS ? the->rows - row : MAX_ROWS;
    const float *x = the->x + row * the->inputs;
    if (width >= BLOCK) {
      BLOCKS[rows](weights, bias, x, the->inputs, y + row * the->outputs, the->outputs,
                   the->inputs);
    } else {
      BLOCKS[rows](weights, bias, x, the->inputs, edge, BLOCK, the->inputs);
      for (long i = 0; i < rows; i++)
        memcpy(y + (row + i) * the->outputs, edge + i * BLOCK, width * sizeof(float));
    }
  }
}

// Threads beside the caller's. A job's blocks are taken one run at a time by compare-and-swap of
// `ticket`, which holds the job's number and the next block, so that a thread that wakes late can
// take nothing of a later job with an earlier job's arguments.
#define MAX_THREADS 256
#define SPINS 4000

static job current;
static long current_blocks, current_run;
static _Atomic uint64_t ticket; // number of the job << 32 | next block
static _Atomic long finished;   // blocks of the current job
static _Atomic int sleeping;
static int started_threads;
static pid_t started_by;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static pthread_mutex_t one_caller = PTHREAD_MUTEX_INITIALIZER;

// Take runs of blocks of job `number` until there are none.
static void work(uint32_t number) {
  job mine = current;
  long blocks = current_blocks, run = current_run;
  for (;;) {
    uint64_t seen = atomic_load(&ticket);
    long first = (long)(seen & 0xffffffffu);
    if ((uint32_t)(seen >> 32) != number || first >= blocks)
      return;
    long next = first + run < blocks ? first + run : blocks;
    if (!atomic_compare_exchange_weak(&ticket, &seen, (uint64_t)number << 32 | (uint64_t)next))
      continue;
    for (long block = first; block < next; block++)
      multiply_block(&mine, block);
    atomic_fetch_add(&finished, next - first);
  }
}

static void *serve(void *unused) {
  (void)unused;
  uint32_t done = 0;
  for (;;) {
    uint32_t number = 0;
    for (int spin = 0; spin < SPINS; spin++) {
      number = (uint32_t)(atomic_load(&ticket) >> 32);
      if (number != done)
        break;
      PAUSE();
    }
    if (number == done || number == 0) {
      pthread_mutex_lock(&lock);
      atomic_fetch_add(&sleeping, 1);
      while ((number = (uint32_t)(atomic_load(&ticket) >> 32)) == done || number == 0)
        pthread_cond_wait(&wake, &lock);
      atomic_fetch_sub(&sleeping, 1);
      pthread_mutex_unlock(&lock);
    }
    work(number);
    done = number;
  }
  return 0;
}

static void start_threads(int wanted) {
  if (started_by != getpid()) { // threads do not survive a fork
    started_threads = 0;
    started_by = getpid();
  }
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_t thread;
  while (started_threads < wanted && started_threads < MAX_THREADS &&
         pthread_create(&thread, &attributes, serve, 0) == 0)
    started_threads++;
  pthread_attr_destroy(&attributes);
}

static void run_shared(const job *the, long blocks, int threads) {
  static uint32_t last = 0;
  pthread_mutex_lock(&one_caller);
  start_threads(threads - 1);
  uint32_t number = ++last ? last : ++last; // 0 stands for no job
  atomic_store(&ticket, (uint64_t)(number - 1) << 32 | 0xffffffffu);
  current = *the;
  current_blocks = blocks;
  current_run = blocks / (threads * 4) > 0 ? blocks / (threads * 4) : 1;
  atomic_store(&finished, 0);
  atomic_store(&ticket, (uint64_t)number << 32);
  if (atomic_load(&sleeping)) {
    pthread_mutex_lock(&lock);
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&lock);
  }
  work(number);
  for (long spin = 0; atomic_load(&finished) < blocks; spin++)
    if (spin < SPINS)
      PAUSE();
    else
      sched_yield(); // the thread that computes the last blocks may want this core
  pthread_mutex_unlock(&one_caller);
}

// y (rows, outputs) = x (rows, inputs) W^T + bias; `bias` has a float for each output of all blocks.
void skynet_product(const uint16_t *weights, const float *bias, const float *x, float *y, long rows,
                    long inputs, long outputs, int threads) {
  job the = {weights, bias, x, y, rows, inputs, outputs};
  long blocks = (outputs + BLOCK - 1) / BLOCK;
  if (threads > 1 && blocks > 1) {
    run_shared(&the, blocks, threads < blocks ? threads : (int)blocks);
    return;
  }
  for (long block = 0; block < blocks; block++)
    multiply_block(&the, block);
}

// Float32 weights of blocks [first, first + blocks): `out` is (inputs, blocks x 32).
void skynet_unpack(const uint16_t *weights, float *out, long inputs, long first, long blocks) {
  for (long block = 0; block < blocks; block++)
    for (long input = 0; input < inputs; input++) {
      const uint16_t *column = weights + ((first + block) * inputs + input) * BLOCK;
      float *to = out + (input * blocks + block) * BLOCK;
      for (int part = 0; part < PARTS; part++) {
        pairs packed;
        memcpy(&packed, column + part * 2 * LANES, sizeof packed);
        floats low = (floats)(packed << 16), high = (floats)(packed & 0xffff0000u);
        memcpy(to + part * LANES, &low, sizeof low);
        memcpy(to + BLOCK / 2 + part * LANES, &high, sizeof high);
      }
    }
}
