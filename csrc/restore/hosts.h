/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_RESTORE_HOSTS_H
#define US_RESTORE_HOSTS_H

#include "../discover/template.h"
#include "../store/store.h"

#define US_HOSTS_MAX 100
#define US_HOST_LEN_MAX 255

struct us_hosts {
	size_t count;
	char names[US_HOSTS_MAX][US_HOST_LEN_MAX + 1];
};

/*
 * The values of {{hostname}} in TEMPLATE_TEXT with which the target has databases of
 * PATTERN, in the order of keys, at most US_HOSTS_MAX: some requests for each. Nothing,
 * if the template has no {{hostname}}, or behind a variable of many components. As list.
 */
int32_t us_hosts_find(struct us_store *store, const struct us_pattern *pattern,
		      const char *template_text, const _Atomic uint32_t *cancel,
		      struct us_hosts *ret_hosts, struct us_error *err);

#endif
