// What the generated glue wants of a C library. There is none: a policy has no system to run on.
#pragma once

#include <stddef.h>

// An instruction of its own, given -mbulk-memory.
#define memcpy __builtin_memcpy

static inline size_t strlen(const char *text) {
  size_t length = 0;
  while (text[length] != 0) length++;
  return length;
}
