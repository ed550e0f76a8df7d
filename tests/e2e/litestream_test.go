package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var quietLog = log.New(io.Discard, "", 0)

// startCommand starts cmd. Pdeathsig is tied to the thread that forks, so the
// forks happen on one thread that lives as long as the tests.
func startCommand(cmd *exec.Cmd) error {
	forkerOnce.Do(func() {
		go func() {
			runtime.LockOSThread()
			for f := range forker {
				f()
			}
		}()
	})
	done := make(chan error, 1)
	forker <- func() { done <- cmd.Start() }
	return <-done
}

var (
	forker     = make(chan func())
	forkerOnce sync.Once
)

// waitFor polls cond every 50 ms and fails the test if it does not come true in time.
func waitFor(t testing.TB, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	if !poll(limit, cond) {
		t.Fatalf("waited %v in vain for %s", limit, what)
	}
}

func poll(limit time.Duration, cond func() bool) bool {
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if cond() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		<-tick.C
	}
}

// settings is one litestream.yml.
type settings struct {
	pattern  string
	interval string   // "" leaves the key out
	target   string   // the s3: or file: block, unindented
	keys     []string // further lines of multi_db
	top      []string // further top-level lines
	noHTTP   bool
	mayFail  bool // once: databases may fail
}

const seedTemplate = "{{project}}/{{database}}/{{branch}}/{{tenant}}"

func seedPattern(root string) string { return root + "/*/databases/*/branches/*/tenants/*.db" }

func fileTarget(dir string, extra ...string) string {
	return fileTargetPath(dir, seedTemplate, extra...)
}

func fileTargetPath(dir, path string, extra ...string) string {
	return block("file", append([]string{"directory: " + dir, `path: "` + path + `"`}, extra...)...)
}

func block(name string, lines ...string) string { return name + ":\n  " + strings.Join(lines, "\n  ") }

func (c settings) text(port int) string {
	var b strings.Builder
	if !c.noHTTP {
		fmt.Fprintf(&b, "addr: \"127.0.0.1:%d\"\n", port)
	}
	for _, l := range c.top {
		fmt.Fprintln(&b, l)
	}
	if c.pattern != "" {
		fmt.Fprintf(&b, "multi_db:\n  enabled: true\n  discovery_pattern: %q\n", c.pattern)
		if c.interval != "" {
			fmt.Fprintf(&b, "  sync_interval: %s\n", c.interval)
		}
		for _, l := range c.keys {
			fmt.Fprintln(&b, "  "+l)
		}
		for l := range strings.SplitSeq(c.target, "\n") {
			fmt.Fprintln(&b, "  "+l)
		}
	}
	return b.String()
}

// write stores the configuration in a new file and returns its path.
func (c settings) write(t testing.TB, port int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "litestream.yml")
	must(t, os.WriteFile(path, []byte(c.text(port)), 0o644))
	return path
}

type failure struct {
	Path, Stage, Message string
	Cycles               int
}

type stats struct {
	Databases             int      `json:"databases"`
	ChangedLastCycle      int      `json:"changed_last_cycle"`
	UploadsSuccess        int      `json:"uploads_success"`
	UploadsFailed         int      `json:"uploads_failed"`
	BytesUploaded         int64    `json:"bytes_uploaded"`
	LastScan              *string  `json:"last_scan"`
	Cycles                int      `json:"cycles"`
	Unsynced              int      `json:"unsynced"`
	OldestUnsyncedSeconds *float64 `json:"oldest_unsynced_seconds"`
	UploadsSkippedUnchgd  int      `json:"uploads_skipped_unchanged"`
	DatabasesFailed       int      `json:"databases_failed"`
	DatabasesEmpty        int      `json:"databases_empty"`
	NotDatabases          int      `json:"not_databases"`
	DatabasesGone         int      `json:"databases_gone"`
	ScanSeconds           float64  `json:"scan_seconds"`
	CycleSeconds          float64  `json:"cycle_seconds"`
	CycleOverruns         int      `json:"cycle_overruns"`
	APICalls              struct {
		Put, Get, List, Delete int
	} `json:"api_calls"`
	CostUSDPerDay float64         `json:"cost_usd_per_day"`
	PutsPerDay    float64         `json:"puts_per_day"`
	Failures      []failure       `json:"failures"`
	Target        json.RawMessage `json:"target"`
	Version       string          `json:"version"`
	UptimeSeconds float64         `json:"uptime_seconds"`
}

// daemon is a running `litestream replicate`.
type daemon struct {
	t      testing.TB
	port   int
	config string
	log    string
	cmd    *exec.Cmd
	exited chan struct{}
	err    error // of Wait, after exited
}

type option func(*exec.Cmd)

func withEnv(kv ...string) option { return func(c *exec.Cmd) { c.Env = append(c.Env, kv...) } }
func asNobody() option {
	return func(c *exec.Cmd) {
		c.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	}
}
func withBinary(path string) option { return func(c *exec.Cmd) { c.Path, c.Args[0] = path, path } }

// inOwnMounts runs a shell script in a mount namespace of its own, and the command
// ("$@") after it.
func inOwnMounts(script string) option {
	return func(c *exec.Cmd) {
		w := exec.Command("unshare", append([]string{"-m", "sh", "-c", script + ` && exec "$@"`, "sh"}, c.Args...)...)
		c.Path, c.Args, c.Err = w.Path, w.Args, w.Err
	}
}

func command(args []string, opts ...option) *exec.Cmd {
	cmd := exec.Command(program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Env = append(os.Environ(), "AWS_EC2_METADATA_DISABLED=true")
	for _, o := range opts {
		o(cmd)
	}
	return cmd
}

// replicate starts the daemon and waits until it answers /stats.
func replicate(t testing.TB, c settings, opts ...option) *daemon {
	t.Helper()
	port := freePort(t)
	d := replicateConfig(t, c.write(t, port), port, opts...)
	waitFor(t, 30*time.Second, "/stats to answer", func() bool {
		if d.dead() {
			t.Fatalf("litestream replicate ended: %v\n%s", d.err, d.output())
		}
		_, err := d.tryStats()
		return err == nil
	})
	return d
}

func replicateConfig(t testing.TB, config string, port int, opts ...option) *daemon {
	t.Helper()
	d := &daemon{t: t, port: port, config: config, log: filepath.Join(t.TempDir(), "litestream.log"), exited: make(chan struct{})}
	out := must1[*os.File](t)(os.Create(d.log))
	defer out.Close()
	d.cmd = command([]string{"replicate", "-config", config}, opts...)
	d.cmd.Stdout, d.cmd.Stderr = out, out
	must(t, startCommand(d.cmd))
	go func() {
		d.err = d.cmd.Wait()
		close(d.exited)
	}()
	t.Cleanup(func() {
		d.kill()
		if t.Failed() {
			t.Logf("log of %s:\n%s", d.config, tail(d.output(), 6000))
		}
	})
	return d
}

func tail(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}

func (d *daemon) dead() bool {
	select {
	case <-d.exited:
		return true
	default:
		return false
	}
}

func (d *daemon) kill() {
	if !d.dead() {
		_ = d.cmd.Process.Kill()
		<-d.exited
	}
}

// stop sends SIGTERM and returns how long the process took; it must exit with 0.
func (d *daemon) stop() time.Duration {
	d.t.Helper()
	took, err := d.terminate(40 * time.Second)
	if err != nil {
		d.t.Errorf("litestream replicate after SIGTERM: %v\n%s", err, tail(d.output(), 4000))
	}
	return took
}

func (d *daemon) terminate(limit time.Duration) (time.Duration, error) {
	d.t.Helper()
	start := time.Now()
	must(d.t, d.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case <-d.exited:
		return time.Since(start), d.err
	case <-time.After(limit):
		d.t.Fatalf("still running %v after SIGTERM\n%s", limit, tail(d.output(), 4000))
		return 0, nil
	}
}

func (d *daemon) output() string {
	b, _ := os.ReadFile(d.log)
	return string(b)
}

var statsClient = &http.Client{Timeout: 5 * time.Second}

func (d *daemon) get(path string) ([]byte, error) {
	resp, err := statsClient.Get(fmt.Sprintf("http://127.0.0.1:%d%s", d.port, path))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != 200 {
		err = fmt.Errorf("%s: %s", resp.Status, b)
	}
	return b, err
}

// json gets path and reads the answer into v.
func (d *daemon) json(path string, v any) error {
	b, err := d.get(path)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	return err
}

func (d *daemon) tryStats() (s stats, err error) {
	err = d.json("/stats", &s)
	return s, err
}

func (d *daemon) stats() stats {
	d.t.Helper()
	s, err := d.tryStats()
	if err != nil {
		if d.dead() {
			d.t.Fatalf("litestream replicate ended: %v\n%s", d.err, tail(d.output(), 4000))
		}
		d.t.Fatalf("/stats: %v", err)
	}
	return s
}

// wait polls /stats until cond holds, and returns what it held for.
func (d *daemon) wait(limit time.Duration, what string, cond func(s stats) bool) stats {
	d.t.Helper()
	var last stats
	ok := poll(limit, func() bool {
		last = d.stats()
		return cond(last)
	})
	if !ok {
		last.Failures = last.Failures[:min(3, len(last.Failures))]
		d.t.Fatalf("waited %v in vain for %s; /stats: %+v", limit, what, last)
	}
	return last
}

// waitCycles waits until n cycles that began after this call have been completed.
func (d *daemon) waitCycles(n int, limit time.Duration) stats {
	d.t.Helper()
	from := d.stats().Cycles + 1 // one may be under way
	return d.wait(limit, fmt.Sprintf("%d full cycles", n), func(s stats) bool { return s.Cycles >= from+n })
}

func (d *daemon) waitSynced(limit time.Duration) stats {
	d.t.Helper()
	return d.wait(limit, "nothing unsynced", func(s stats) bool { return s.Cycles > 0 && s.Unsynced == 0 })
}

// memory returns VmRSS and VmHWM in bytes.
func (d *daemon) memory() (rss, peak int64) {
	d.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	must(d.t, err)
	for line := range strings.SplitSeq(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "VmRSS:":
			rss = n << 10
		case "VmHWM:":
			peak = n << 10
		}
	}
	return rss, peak
}

type result struct {
	stdout, stderr string
	code           int
}

func (r result) all() string { return r.stdout + r.stderr }

// litestream runs a command to its end, at most two minutes.
func litestream(t testing.TB, args []string, opts ...option) result {
	t.Helper()
	cmd := command(args, opts...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	must(t, startCommand(cmd))
	timer := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	if !timer.Stop() {
		t.Fatalf("litestream %v did not end within two minutes\n%s%s", args, stdout.String(), stderr.String())
	}
	r := result{stdout: stdout.String(), stderr: stderr.String()}
	if err != nil {
		r.code = cmd.ProcessState.ExitCode()
	}
	return r
}

// once runs one cycle with `replicate -once`, which must succeed unless mayFail.
func once(t testing.TB, c settings, opts ...option) result {
	t.Helper()
	c.noHTTP = true
	r := litestream(t, []string{"replicate", "-once", "-config", c.write(t, 0)}, opts...)
	if r.code != 0 && !c.mayFail {
		t.Fatalf("replicate -once: exit %d\n%s", r.code, r.all())
	}
	return r
}

// restore brings path back into a new file below a temporary directory.
func restore(t testing.TB, config, path string, args ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "restored.db")
	restoreTo(t, config, path, out, args...)
	return out
}

func restoreTo(t testing.TB, config, path, out string, args ...string) {
	t.Helper()
	r := tryRestore(t, config, path, out, args...)
	if r.code != 0 {
		t.Fatalf("restore %q: exit %d\n%s", path, r.code, r.all())
	}
}

func tryRestore(t testing.TB, config, path, out string, args ...string) result {
	t.Helper()
	all := append([]string{"restore", "-config", config, "-o", out}, args...)
	return litestream(t, append(all, path))
}
