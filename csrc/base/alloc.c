/* SPDX-License-Identifier: Apache-2.0 */
#include "alloc.h"

#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

void *us_alloc(size_t len)
{
	return malloc(len ? len : 1);
}

void *us_alloc_zero(size_t len)
{
	return calloc(1, len ? len : 1);
}

void *us_realloc(void *old, size_t len)
{
	return realloc(old, len ? len : 1);
}

void *us_alloc_array(size_t count, size_t item_len)
{
	return calloc(count ? count : 1, item_len ? item_len : 1);
}

char *us_strndup(const char *text, size_t len)
{
	char *copy = us_alloc(us_size_add(len, 1));
	if (copy) {
		memcpy(copy, text, len);
		copy[len] = '\0';
	}
	return copy;
}

char *us_strdup(const char *text)
{
	return text ? us_strndup(text, strlen(text)) : NULL;
}

void us_free(void *p)
{
	int saved = errno;
	free(p);
	errno = saved;
}

void *us_realloc_wiped(void *old, size_t len)
{
	size_t old_len = malloc_usable_size(old);
	if (len <= old_len && len > 0 && old) {
		explicit_bzero((char *)old + len, old_len - len);
		return old;
	}
	void *p = us_alloc(len);
	if (p && old) {
		memcpy(p, old, old_len < len ? old_len : len);
		us_free_wiped(old);
	}
	return p;
}

void us_free_wiped(void *p)
{
	if (p) {
		explicit_bzero(p, malloc_usable_size(p));
	}
	us_free(p);
}
