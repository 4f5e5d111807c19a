// Memory in pages of 2 MB, where the system has them. A product that reads a large weight once
// spends a fifth of its time on the page table with pages of 4 KB.

#include <stdint.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#define PAGE ((uintptr_t)1 << 21)

// Ask for such pages in memory that was not written yet. Without them nothing changes.
void skynet_large_pages(void *memory, long bytes) {
  uintptr_t first = ((uintptr_t)memory + PAGE - 1) & ~(PAGE - 1);
  uintptr_t stop = ((uintptr_t)memory + (uintptr_t)bytes) & ~(PAGE - 1);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (first < stop)
    madvise((void *)first, stop - first, MADV_HUGEPAGE);
#else
  (void)first, (void)stop;
#endif
}
