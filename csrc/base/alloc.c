/* SPDX-License-Identifier: Apache-2.0 */
#include "alloc.h"

#include <errno.h>
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
