#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE() __asm__ __volatile__("yield")
#endif

// Threads beside the caller's. A job's blocks are taken one run at a time by compare-and-swap of
// `ticket`, which holds the job's number and the next block, so that a thread that wakes late can
// take nothing of a later job with an earlier job's arguments.
#define MAX_THREADS 256
#define SPINS 4000

static block_task current_task;
static const void *current_argument;
static long current_blocks, current_run;
static _Atomic uint64_t ticket; // number of the job << 32 | next block
static _Atomic long finished;   // blocks of the current job
static _Atomic int sleeping;
static int started_threads;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static pthread_mutex_t one_caller = PTHREAD_MUTEX_INITIALIZER;

// Take runs of blocks of job `number` until there are none.
static void work(uint32_t number) {
  block_task task = current_task;
  const void *argument = current_argument;
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
      task(argument, block);
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

// Threads do not survive a fork: a child must not wait for those that slept or had a lock.
static void forget_threads(void) {
  lock = one_caller = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
  wake = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
  atomic_store(&sleeping, 0);
  started_threads = 0;
}

__attribute__((constructor)) static void watch_forks(void) {
  pthread_atfork(0, 0, forget_threads);
}

static void start_threads(int wanted) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_t thread;
  while (started_threads < wanted && started_threads < MAX_THREADS &&
         pthread_create(&thread, &attributes, serve, 0) == 0)
    started_threads++;
  pthread_attr_destroy(&attributes);
}

static void run_shared(block_task task, const void *argument, long blocks, int threads) {
  static uint32_t last = 0;
  pthread_mutex_lock(&one_caller);
  start_threads(threads - 1);
  uint32_t number = ++last ? last : ++last; // 0 stands for no job
  atomic_store(&ticket, (uint64_t)(number - 1) << 32 | 0xffffffffu);
  current_task = task;
  current_argument = argument;
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

void run_blocks(block_task task, const void *argument, long blocks, int threads) {
  if (threads > blocks)
    threads = (int)blocks;
  if (threads > 1) {
    run_shared(task, argument, blocks, threads);
    return;
  }
  for (long block = 0; block < blocks; block++)
    task(argument, block);
}
