package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pierrec/lz4/v4"
)

// ------------------------------------------------------- litestream multi-db

// row is one line of a command with -json, whichever it was.
type row struct {
	Status       string   `json:"status"`
	Path         string   `json:"path"`
	Output       string   `json:"output"`
	Key          string   `json:"key"`
	Time         *string  `json:"time"`
	Newest       *string  `json:"newest"`
	SnapshotTime *string  `json:"snapshot_time"`
	AgeSeconds   *float64 `json:"age_seconds"`
	Size         int64    `json:"size"`
	DatabaseSize int64    `json:"database_size"`
	Backups      int      `json:"backups"`
	Bytes        int64    `json:"bytes"`
	Mode         string   `json:"mode"`
	Error        string   `json:"error"`
	fields       string
}

// answer is what a command said, taken apart.
type answer struct {
	result
	rows    []row
	summary map[string]any
}

// num is a number of the summary; -1 if it has none of that name.
func (a answer) num(key string) int {
	v, ok := a.summary[key].(float64)
	if !ok {
		return -1
	}
	return int(v)
}

// row returns the row of a database; the zero row if there is none.
func (a answer) row(path string) row {
	for _, r := range a.rows {
		if r.Path == path {
			return r
		}
	}
	return row{}
}

func (a answer) by(status string) (paths []string) {
	for _, r := range a.rows {
		if r.Status == status {
			paths = append(paths, r.Path)
		}
	}
	sort.Strings(paths)
	return paths
}

func fieldNames(raw []byte) string {
	var m map[string]json.RawMessage
	if json.Unmarshal(raw, &m) != nil {
		return ""
	}
	var names []string
	for k := range m {
		names = append(names, k)
	}
	sort.Strings(names)
	return strings.Join(names, " ")
}

// takeApart wants one JSON object per line, and a summary, if any, in the last one.
func takeApart(t testing.TB, r result) (a answer) {
	t.Helper()
	a.result = r
	lines := strings.Split(strings.TrimSuffix(r.stdout, "\n"), "\n")
	for i, line := range lines {
		if line == "" && len(lines) == 1 {
			break
		}
		var v row
		var s struct{ Summary map[string]any }
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("line %d of the output is no JSON: %v: %q\n%s", i+1, err, tail(line, 300), tail(r.stderr, 1000))
		}
		must(t, json.Unmarshal([]byte(line), &s))
		if s.Summary != nil {
			if i != len(lines)-1 {
				t.Errorf("the summary is line %d of %d", i+1, len(lines))
			}
			a.summary = s.Summary
			continue
		}
		v.fields = fieldNames([]byte(line))
		a.rows = append(a.rows, v)
	}
	return a
}

func verbArgs(config, verb string, args ...string) []string {
	return append([]string{"multi-db", verb, "-config", config, "-json"}, args...)
}

// multiDB runs `litestream multi-db VERB -json`.
func multiDB(t testing.TB, config, verb string, args ...string) answer {
	t.Helper()
	return takeApart(t, litestream(t, verbArgs(config, verb, args...)))
}

// good wants exit 0.
func (a answer) good(t testing.TB) answer {
	t.Helper()
	if a.code != 0 {
		t.Fatalf("exit %d\n%s\n%s", a.code, tail(a.stdout, 2000), tail(a.stderr, 2000))
	}
	return a
}

// measured is litestream for commands whose memory matters, and which may have to be
// stopped: stop is called with the process every few milliseconds. The peak is that
// of a few milliseconds before the end.
func measured(t testing.TB, limit time.Duration, args []string, stop func(p *os.Process)) (r result, peak int64) {
	t.Helper()
	cmd := command(args)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	must(t, startCommand(cmd))
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	tick := time.NewTicker(3 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(limit)
	for ended := false; !ended; {
		select {
		case <-exited:
			ended = true
		case <-tick.C:
			peak = max(peak, peakOf(cmd.Process.Pid))
			if stop != nil {
				stop(cmd.Process)
			}
			if time.Now().After(deadline) {
				_ = cmd.Process.Kill()
				<-exited
				ended = true
				t.Errorf("litestream %v did not end within %v\n%s\n%s", args, limit, tail(stdout.String(), 1000), tail(stderr.String(), 1000))
			}
		}
	}
	return result{stdout: stdout.String(), stderr: stderr.String(), code: cmd.ProcessState.ExitCode()}, peak
}

// peakOf is VmHWM of a process, 0 if it has gone.
func peakOf(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(b), "VmHWM:")
	f := strings.Fields(after)
	if len(f) == 0 {
		return 0
	}
	n, _ := strconv.ParseInt(f[0], 10, 64)
	return n << 10
}

// -------------------------------------------------------------- forged objects

// objectAt is the name of an object of the given second, without its key prefix.
func objectAt(at time.Time) string { return at.UTC().Format("20060102T150405Z") + ".db.lz4" }

func parseObject(name string) (time.Time, error) {
	return time.Parse("20060102T150405Z", strings.TrimSuffix(name, ".db.lz4"))
}

// frameOf is the LZ4 frame of an image as docs/formats.md has it, made by pierrec/lz4.
func frameOf(image []byte) []byte {
	var b bytes.Buffer
	w := lz4.NewWriter(&b)
	if err := w.Apply(lz4.BlockSizeOption(lz4.Block64Kb), lz4.ChecksumOption(true), lz4.SizeOption(uint64(len(image)))); err != nil {
		panic(err)
	}
	if _, err := w.Write(image); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// trailerFor is a trailer that says the truth.
func trailerFor(path string, image, frame []byte, at time.Time) trailer {
	page := int64(binary.BigEndian.Uint16(image[16:]))
	if page == 1 {
		page = 65536
	}
	return trailer{Format: 1, Path: path, SnapshotTime: at.UTC().Format("2006-01-02T15:04:05.000000000Z"), DatabaseSize: int64(len(image)),
		PageSize: page, ChangeCounter: int64(binary.BigEndian.Uint32(image[24:])), Mode: "0640", UID: os.Geteuid(), GID: os.Getegid(),
		LZ4SHA256: fmt.Sprintf("%x", sha256.Sum256(frame))}
}

// withLine ends an object with a trailer of any text.
func withLine(frame, line []byte) []byte {
	payload := append(append(bytes.Clone(line), '\n'), fmt.Sprintf("%x", sha256.Sum256(line))...)
	b := append(bytes.Clone(frame), 0x50, 0x2A, 0x4D, 0x18)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

func withTrailer(frame []byte, tr trailer) []byte {
	line, err := json.Marshal(tr)
	if err != nil {
		panic(err)
	}
	return withLine(frame, line)
}

// forge is a good object of an image.
func forge(path string, image []byte, at time.Time) []byte {
	frame := frameOf(image)
	return withTrailer(frame, trailerFor(path, image, frame, at))
}

// smallImage is a database with one row that says tag.
func smallImage(t testing.TB, tag string) []byte {
	t.Helper()
	return tagged(must1[[]template](t)(templates())[0], tag)
}

// ----------------------------------------------------- fleets, lost and restored

// lost is what a database was before its tree was lost.
type lost struct {
	size     int
	sum      string
	mode     fs.FileMode
	uid, gid uint32
}

func remember(t testing.TB, path string) lost {
	t.Helper()
	img := sqliteImage(t, path)
	info := must1[os.FileInfo](t)(os.Stat(path))
	st := info.Sys().(*syscall.Stat_t)
	return lost{len(img), fmt.Sprintf("%x", sha256.Sum256(img)), info.Mode().Perm(), st.Uid, st.Gid}
}

// isBack compares the file at path with what was lost.
func (l lost) isBack(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	st := info.Sys().(*syscall.Stat_t)
	if info.Mode() != l.mode || os.Geteuid() == 0 && (st.Uid != l.uid || st.Gid != l.gid) {
		return fmt.Errorf("mode %v, owner %d:%d, want %v and %d:%d", info.Mode(), st.Uid, st.Gid, l.mode, l.uid, l.gid)
	}
	if int(info.Size()) != l.size {
		return fmt.Errorf("%d bytes, want %d", info.Size(), l.size)
	}
	sum, err := fileSum(path)
	if err == nil && sum != l.sum {
		err = fmt.Errorf("another content of %d bytes", l.size)
	}
	return err
}

// tree returns the regular files below root, those that a person sees and those whose
// name begins with a dot (of their own or of a directory's).
func tree(root string) (visible, hidden []string) {
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		if rel, _ := filepath.Rel(root, path); strings.HasPrefix(rel, ".") || strings.Contains(rel, "/.") {
			hidden = append(hidden, path)
		} else {
			visible = append(visible, path)
		}
		return nil
	})
	return visible, hidden
}

// watch looks at a tree while something is restored into it: each file under a name
// that a person sees is to be one of want, whole, from its first moment on.
type watch struct {
	root string
	want map[string]lost
	seen map[string]bool
	n    atomic.Int64
	bad  []string
	stop chan struct{}
	done sync.WaitGroup
}

func watchTree(root string, want map[string]lost) *watch {
	w := &watch{root: root, want: want, seen: map[string]bool{}, stop: make(chan struct{})}
	w.done.Go(func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			w.look()
			select {
			case <-w.stop:
				w.look()
				return
			case <-tick.C:
			}
		}
	})
	return w
}

func (w *watch) look() {
	visible, _ := tree(w.root)
	for _, p := range visible {
		if w.seen[p] {
			continue
		}
		l, ok := w.want[p]
		if !ok {
			w.bad = append(w.bad, fmt.Sprintf("%q has appeared, which is no database", p))
		} else if err := l.isBack(p); err != nil {
			w.bad = append(w.bad, fmt.Sprintf("%q: %v", p, err))
		}
		w.seen[p] = true
	}
	w.n.Store(int64(len(visible)))
}

func (w *watch) end(t testing.TB) {
	t.Helper()
	close(w.stop)
	w.done.Wait()
	for _, b := range w.bad[:min(10, len(w.bad))] {
		t.Errorf("while it was restored: %s", b)
	}
}

// allBack compares a tree with what was lost: nothing more, nothing less, nothing
// hidden.
func allBack(t testing.TB, root string, want map[string]lost) {
	t.Helper()
	visible, hidden := tree(root)
	if len(hidden) != 0 {
		t.Errorf("%d hidden files are left, the first: %q", len(hidden), hidden[0])
	}
	bad := 0
	for _, p := range visible {
		if _, ok := want[p]; !ok {
			t.Errorf("%q was never backed up", p)
			bad++
		}
	}
	for p, l := range want {
		if err := l.isBack(p); err != nil {
			t.Errorf("%q: %v", p, err)
			bad++
		}
		if bad > 10 {
			t.Fatal("and so on")
		}
	}
}

// moved is want below another directory.
func moved(want map[string]lost, from, to string) map[string]lost {
	out := make(map[string]lost, len(want))
	for p, l := range want {
		out[to+strings.TrimPrefix(p, from)] = l
	}
	return out
}

func envInt(name string, normal int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return normal
}

// operations counts the requests of the access log from a line on, by their name.
func (s *s3server) operations(from int) map[string]int {
	s.t.Helper()
	out := map[string]int{}
	reqs, _ := s.requests(from)
	for _, r := range reqs {
		out[strings.TrimPrefix(r.op, "s3_")]++
	}
	return out
}

// pages is how many LIST requests n objects take.
func pages(n int) int { return max(1, (n+999)/1000) }

// put writes an object behind everybody's back; its directories, too.
func (s *s3server) put(key string, b []byte) {
	s.t.Helper()
	p := filepath.Join(s.dir(), key)
	must(s.t, os.MkdirAll(filepath.Dir(p), 0o755))
	must(s.t, os.WriteFile(p, b, 0o644))
}

// allKeys returns what a target directory holds, whatever it is, without the
// gateway's own hidden files.
func allKeys(t testing.TB, target string) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	visible, _ := tree(target)
	for _, p := range visible {
		out[strings.TrimPrefix(p, target+"/")] = true
	}
	return out
}

// clock is the time that litestream's core sees.
type clock struct {
	t    testing.TB
	so   string
	file string
}

func newClock(t testing.TB) *clock {
	t.Helper()
	return &clock{t: t, so: must1[string](t)(fakeClock()), file: filepath.Join(t.TempDir(), "offset")}
}

func (c *clock) set(to time.Time) {
	c.t.Helper()
	must(c.t, os.WriteFile(c.file+".new", fmt.Append(nil, int64(time.Until(to)/time.Second)), 0o644))
	must(c.t, os.Rename(c.file+".new", c.file))
}

func (c *clock) env() option { return withEnv("LD_PRELOAD="+c.so, "E2E_CLOCK="+c.file) }

// lines starts a command whose standard output is read line by line.
func lines(t testing.TB, args []string) (cmd *exec.Cmd, out *bufio.Scanner, stderr *bytes.Buffer) {
	t.Helper()
	cmd = command(args)
	stderr = new(bytes.Buffer)
	cmd.Stderr = stderr
	pipe, err := cmd.StdoutPipe()
	must(t, err)
	must(t, startCommand(cmd))
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd, bufio.NewScanner(pipe), stderr
}
