/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_DISCOVER_TEMPLATE_H
#define US_DISCOVER_TEMPLATE_H

#include "pattern.h"

/*
 * A path template such as "{{project}}/{{tenant}}": turns a database's path into
 * the key prefix of its objects and back. A bijection by construction: what
 * DESIGN.md section 2 demands is checked when it is compiled. Immutable after
 * us_template_new; any number of threads may use it.
 */
struct us_template;

#define US_KEY_LEN_MAX 1024 /* S3: of the whole key, the object's name included */
#define US_KEY_COMPONENT_LEN_MAX 255
/* "20060102T150405Z.db.lz4": what the object's name adds to the key prefix. */
#define US_OBJECT_NAME_LEN 23

/*
 * Compiles TEXT against PATTERN, which is borrowed as long as the template
 * lives. HOSTNAME replaces {{hostname}} (escaped like a capture); NULL if the
 * template must not use it. US_E_CONFIG with a message that begins with
 * "path: " and names value and remedy. Freed with us_template_free.
 */
int32_t us_template_new(const char *text, const struct us_pattern *pattern, const char *hostname,
			struct us_template **ret_template, struct us_error *err);
void us_template_free(struct us_template *tmpl);
/* The pattern it was compiled against. */
const struct us_pattern *us_template_pattern(const struct us_template *tmpl);

/*
 * Writes the key prefix of PATH (no leading or trailing slash) and a NUL to
 * RET_KEY (US_KEY_LEN_MAX + 1 bytes) and returns its length. US_E_NOTFOUND if
 * the pattern does not match PATH; US_E_NAME if the key with an object's name
 * would pass US_KEY_LEN_MAX or a component US_KEY_COMPONENT_LEN_MAX.
 */
int32_t us_template_key(const struct us_template *tmpl, const char *path, size_t path_len,
			char *ret_key, struct us_error *err);

/*
 * The inverse: the path that KEY (KEY_LEN bytes, a key prefix) belongs to, and a
 * NUL, to RET_PATH (US_PATH_LEN_MAX + 1 bytes); returns its length. US_E_NOTFOUND
 * if KEY is not ours: no path gives it, or the path found gives another key.
 */
int32_t us_template_path(const struct us_template *tmpl, const char *key, size_t key_len,
			 char *ret_path, struct us_error *err);

/* The part of every key that no wildcard can change: up to the first variable
 * (hostname resolved), cut after its last slash. "" if there is none. For LIST. */
const char *us_template_list_prefix(const struct us_template *tmpl);

/* The template with {{hostname}} resolved and without the names of its variables: equal
 * texts make the same keys. For us_free; NULL for US_E_NOMEM. */
char *us_template_shape(const struct us_template *tmpl);

#endif
