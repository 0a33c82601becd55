// What the generated glue wants of a C library. There is none: a policy has no system to run on.
#pragma once

#include <stddef.h>

void *realloc(void *old, size_t bytes);
void free(void *pointer);

#define abort() __builtin_trap()
