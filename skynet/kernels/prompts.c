// Attention of a chunk of a prompt, whose tokens see the keys of their slot up to themselves.
//
// Softmax runs over blocks of keys (Dao et al., 2022, arXiv:2205.14135); keys that no token of a
// strip of rows sees are not computed.

#include <math.h>
#include <string.h>

#include "matrices.h"
#include "pool.h"

#include "exponential.h"

#define KEYS 64         // of a block; whole panels
#define TASK_ROWS 192   // query heads times tokens
#define ROOM (1L << 16) // bytes of the queries of a task, if one strip of each head takes no more

// What a call computes.
typedef struct {
  const float *queries;       // (tokens, heads, head_dim)
  const float *keys, *values; // (kv_heads, num_keys, head_dim)
  float *out;                 // (tokens, heads, head_dim)
  long tokens, heads, kv_heads, head_dim;
  long query_stride, kv_stride; // floats from a token of queries, and from a KV head, to the next
  long first;                   // the last key that the first token sees
  long window;                  // keys that a token sees; 0: all up to its own
  float scale;
  long together; // tokens of a task
} job;

// What the keys so far have made of a row: the largest score, and the sum of e^(score - largest).
typedef struct {
  float largest, sum;
} state;

// A block of keys: transposed, and the values with room for whole panels.
typedef struct {
  const float *keys, *values; // (head_dim, KEYS); (count, stride)
  long stride, from, count;
} block_of_keys;

static inline lanes load_lanes(const float *from) {
  lanes value;
  memcpy(&value, from, sizeof value);
  return value;
}

// Scores [low, high) of KEYS to e^(score - largest), all others to 0; what the sums of the row so
// far are to be multiplied with.
static float soften(float *scores, long low, long high, state *at) {
  for (long key = 0; key < low; key++)
    scores[key] = -INFINITY;
  for (long key = high; key < KEYS; key++)
    scores[key] = -INFINITY;
  float largest = at->largest;
  lanes most = load_lanes(scores);
  for (long key = WIDTH; key < KEYS; key += WIDTH) {
    lanes value = load_lanes(scores + key);
    most = choose(value > most, value, most);
  }
  for (int lane = 0; lane < WIDTH; lane++)
    largest = most[lane] > largest ? most[lane] : largest;
  lanes total = {0};
  for (long key = 0; key < KEYS; key += WIDTH) {
    lanes share = exp_of(load_lanes(scores + key) - largest);
    memcpy(scores + key, &share, sizeof share);
  }
  memset(scores, 0, low * sizeof(float));
  memset(scores + high, 0, (KEYS - high) * sizeof(float));
  for (long key = 0; key < KEYS; key += WIDTH)
    total += load_lanes(scores + key);
  float sum = 0;
  for (int lane = 0; lane < WIDTH; lane++)
    sum += total[lane];
  float keep = at->sum > 0 ? exp_of((lanes){0} + (at->largest - largest))[0] : 0.0f;
  at->sum = at->sum == at->sum ? at->sum * keep + sum : at->sum; // NaN stays
  at->largest = largest;
  return keep;
}

// Up to ROWS tokens of one query head, from `token` on, over a block of keys.
static void attend_strip(const job *the, const block_of_keys *block, const float *queries,
                         long token, long rows, state *states, float *out) {
  static const float zeros[PANEL];
  long dim = the->head_dim, width = the->heads * dim;
  long last = the->first + token + rows - 1; // the last key that any of the rows sees
  long count = last + 1 - block->from < block->count ? last + 1 - block->from : block->count;
  long oldest = the->window ? the->first + token + 1 - the->window : 0;
  if (count <= 0 || oldest >= block->from + block->count)
    return;
  float scores[ROWS * KEYS];
  for (long key = 0; key < count; key += PANEL)
    multiply_rows(rows, block->keys + key, KEYS, zeros, queries, dim, scores + key, KEYS, dim);
  for (long row = 0; row < rows; row++) {
    long own = the->first + token + row - block->from; // the row's last key
    long low = the->window ? own + 1 - the->window : 0, high = own + 1;
    low = low < 0 ? 0 : low;
    high = high < block->count ? high : block->count;
    if (low >= high) {
      memset(scores + row * KEYS, 0, KEYS * sizeof(float));
      continue;
    }
    float keep = soften(scores + row * KEYS, low, high, states + row);
    for (long at = 0; keep != 1 && at < dim; at++)
      out[row * width + at] *= keep;
  }
  for (long at = 0; at < dim; at += PANEL) {
    float *to = out + at;
    if (at + PANEL <= dim) {
      multiply_rows(rows, block->values + at, block->stride, 0, scores, KEYS, to, width, count);
      continue;
    }
    float edge[ROWS * PANEL] = {0};
    for (long row = 0; row < rows; row++)
      memcpy(edge + row * PANEL, to + row * width, (dim - at) * sizeof(float));
    multiply_rows(rows, block->values + at, block->stride, 0, scores, KEYS, edge, PANEL, count);
    for (long row = 0; row < rows; row++)
      memcpy(to + row * width, edge + row * PANEL, (dim - at) * sizeof(float));
  }
}

// Some tokens of the query heads of one KV head.
static void attend_task(const void *argument, long task) {
  const job *the = argument;
  long dim = the->head_dim, group = the->heads / the->kv_heads, width = the->heads * dim;
  long kv_head = task % the->kv_heads, token = task / the->kv_heads * the->together;
  long tokens = the->tokens - token < the->together ? the->tokens - token : the->together;
  const float *keys = the->keys + kv_head * the->kv_stride;
  const float *values = the->values + kv_head * the->kv_stride;
  float *out = the->out + token * width + kv_head * group * dim;
  long padded = (dim + PANEL - 1) / PANEL * PANEL;

  float queries[group * tokens * dim]; // of each head (tokens, head_dim), times the scale
  state states[group * tokens];
  for (long head = 0; head < group; head++)
    for (long row = 0; row < tokens; row++) {
      const float *from =
          the->queries + (token + row) * the->query_stride + (kv_head * group + head) * dim;
      float *to = queries + (head * tokens + row) * dim;
      for (long at = 0; at < dim; at++) {
        to[at] = from[at] * the->scale;
        out[row * width + head * dim + at] = 0;
      }
      states[head * tokens + row] = (state){-INFINITY, 0};
    }

  float turned[dim * KEYS], wide[padded == dim ? 1 : KEYS * padded];
  long oldest = the->window ? the->first + token + 1 - the->window : 0;
  long end = the->first + token + tokens; // of the keys that any token sees
  for (long from = oldest > 0 ? oldest : 0; from < end; from += KEYS) {
    long count = end - from < KEYS ? end - from : KEYS;
    for (long key = 0; key < KEYS; key++)
      for (long at = 0; at < dim; at++)
        turned[at * KEYS + key] = key < count ? keys[(from + key) * dim + at] : 0;
    block_of_keys block = {turned, values + from * dim, dim, from, count};
    if (padded != dim) {
      for (long key = 0; key < count; key++) {
        memcpy(wide + key * padded, block.values + key * dim, dim * sizeof(float));
        memset(wide + key * padded + dim, 0, (padded - dim) * sizeof(float));
      }
      block.values = wide;
      block.stride = padded;
    }
    for (long head = 0; head < group; head++)
      for (long row = 0; row < tokens; row += ROWS)
        attend_strip(the, &block, queries + (head * tokens + row) * dim, token + row,
                     tokens - row < ROWS ? tokens - row : ROWS, states + head * tokens + row,
                     out + row * width + head * dim);
  }
  for (long head = 0; head < group; head++)
    for (long row = 0; row < tokens; row++)
      for (long at = 0; at < dim; at++)
        out[row * width + head * dim + at] /= states[head * tokens + row].sum;
}

void skynet_attend_prompt(const float *queries, const float *keys, const float *values, float *out,
                          long tokens, long heads, long kv_heads, long head_dim, long query_stride,
                          long kv_stride, long first, long window, float scale, int threads) {
  long group = heads / kv_heads, rows = ROOM / (long)sizeof(float) / head_dim;
  rows = rows < TASK_ROWS ? rows : TASK_ROWS;
  long together = rows / group / ROWS * ROWS;
  together = together < ROWS ? ROWS : together;
  job the = {queries, keys,     values,       out,       tokens, heads,  kv_heads,
             head_dim, query_stride, kv_stride, first, window, scale, together};
  run_blocks(attend_task, &the, (tokens + together - 1) / together * kv_heads, threads);
}
