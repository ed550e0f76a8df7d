/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_BASE_ALLOC_H
#define US_BASE_ALLOC_H

#include <stddef.h>

/* The only places where the library takes memory from the heap. NULL on
 * failure; freed with us_free, which accepts NULL and keeps errno. */
void *us_alloc(size_t len);
void *us_alloc_zero(size_t len);
void *us_realloc(void *old, size_t len);
/* COUNT * ITEM_LEN bytes, zeroed; NULL also where the product overflows. */
void *us_alloc_array(size_t count, size_t item_len);
char *us_strndup(const char *text, size_t len);
char *us_strdup(const char *text); /* NULL for NULL */
void us_free(void *p);

/* The same for what may hold a secret: memory is wiped before it is given back.
 * Only what these two or the others here have returned. */
void *us_realloc_wiped(void *old, size_t len);
void us_free_wiped(void *p);

/* Sums and products that stop at SIZE_MAX instead of wrapping around. */
static inline size_t us_size_add(size_t a, size_t b)
{
	size_t sum;
	return __builtin_add_overflow(a, b, &sum) ? (size_t)-1 : sum;
}

static inline size_t us_size_mul(size_t a, size_t b)
{
	size_t product;
	return __builtin_mul_overflow(a, b, &product) ? (size_t)-1 : product;
}

#endif
