// Threads that share the blocks of one call.

#ifndef SKYNET_POOL_H
#define SKYNET_POOL_H

typedef void (*block_task)(const void *argument, long block);

// Call `task(argument, block)` for every block of [0, blocks), on up to `threads` threads, the
// caller's among them. Returns when all are done. One call runs at a time; others wait.
void run_blocks(block_task task, const void *argument, long blocks, int threads);

#endif
