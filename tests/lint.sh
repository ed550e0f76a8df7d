#!/bin/bash
# What STYLE forbids in the C sources and grep can see: banned calls, and includes
# against the direction in which data flows. Comments do not count.
set -euo pipefail
cd "$(dirname "$0")/.."

bad=0
report() { # WHAT FILE TEXT
	echo "$2: $1: $3"
	bad=1
}

# The text of a file without comments and without what is in quotes.
code_of() {
	gcc -fpreprocessed -dD -E -P "$1" 2>/dev/null | perl -pe 's/"(?:[^"\\]|\\.)*"/""/g'
}

# find_calls NAMES: calls of a function in the text on standard input, but not of a
# member or a longer name. The whole call is printed, in one line.
find_calls() {
	perl -0777 -ne 'while (/(?<![\w>.])((?:'"$1"')\s*(\((?:[^()]++|(?2))*+\)))/g) { ($c = $1) =~ s/\s+/ /g; print "$c\n" }'
}

banned='strcpy|strcat|sprintf|vsprintf|strtok|atoi|atol|atoll|atof|gmtime|localtime|rand|srand|readdir|system|signal|setenv|putenv|gets|alloca'
printing='printf|vprintf|puts|putchar|perror|fprintf|vfprintf|dprintf|fputs|fputc|fwrite'
leaking='fopen|pipe|dup|dup2|accept|epoll_create|inotify_init|creat|mkstemp|opendir'
allocating='malloc|realloc|calloc|reallocarray|strdup|strndup|asprintf|vasprintf|free'

files=0
while IFS= read -r file; do
	files=$((files + 1))
	text="$(code_of "$file")"
	while IFS= read -r call; do
		report "banned" "$file" "$call"
	done < <(find_calls "$banned" <<<"$text")
	while IFS= read -r call; do
		report "prints (the library returns errors)" "$file" "$call"
	done < <(find_calls "$printing" <<<"$text")
	while IFS= read -r call; do
		report "leaks a descriptor into children" "$file" "$call"
	done < <(find_calls "$leaking" <<<"$text")
	while IFS= read -r call; do
		[[ $call == *O_CLOEXEC* || $call == *_OPEN_FLAGS* ]] || report "without O_CLOEXEC" "$file" "$call"
	done < <(find_calls 'open|openat|open64|openat64' <<<"$text")
	while IFS= read -r call; do
		[[ $call == *_CLOEXEC* ]] || report "without its _CLOEXEC" "$file" "$call"
	done < <(find_calls 'socket|socketpair|pipe2|dup3|accept4|epoll_create1|inotify_init1|eventfd|timerfd_create|signalfd|memfd_create' <<<"$text")
	if [[ $file != csrc/base/* ]]; then
		while IFS= read -r call; do
			report "allocation outside base/" "$file" "$call"
		done < <(find_calls "$allocating" <<<"$text")
	fi

	room="${file#csrc/}"
	room="${room%%/*}"
	while IFS= read -r include; do
		case "$include" in
		*/*) other="$(dirname "$include")" other="${other##*/}" ;;
		*) other="$room" ;;
		esac
		[[ $other == "$room" || $other == base || $other == include || $include == ultrasimple.h ]] && continue
		case "$room" in
		base | discover | track | read | encode | store)
			report "include against the direction of the data" "$file" "$include"
			;;
		restore) [[ $other == cycle ]] && report "include against the direction of the data" "$file" "$include" ;;
		esac
	done < <(sed -n 's/^[[:space:]]*#[[:space:]]*include[[:space:]]*"\([^"]*\)".*/\1/p' "$file")
done < <(find csrc -name '*.[ch]' | sort)

[[ $files -gt 0 && $bad -eq 0 ]] || exit 1
echo "pass: banned calls and include direction ($files files)"
