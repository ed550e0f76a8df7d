package multidb

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"
)

// fakeEngine stands in for the core where a test needs its timing.
type fakeEngine struct {
	// run is one cycle; n counts from 1. It should return when canceled is closed,
	// and early when finished is.
	run func(n int, finished, canceled <-chan struct{}) (cycleResult, error)

	mu       sync.Mutex
	starts   []time.Time
	finished chan struct{} // of the cycle under way; nil: none is
	canceled chan struct{}
	closed   bool
	st       coreStats
	fails    []failure
	events   []event
	creds    []credentials
	sweeps   int

	acquireErr         error
	takeover, released bool
	carries            []bool
	flushed            []int // how many cycles had begun before
}

func newFakeEngine() *fakeEngine {
	return &fakeEngine{canceled: make(chan struct{})}
}

// takes returns a cycle that lasts so long, unless it is finished or canceled.
func takes(durations ...time.Duration) func(int, <-chan struct{}, <-chan struct{}) (cycleResult, error) {
	return func(n int, finished, canceled <-chan struct{}) (cycleResult, error) {
		select {
		case <-time.After(durations[min(n, len(durations))-1]):
			return cycleResult{databases: 3}, nil
		case <-finished:
			return cycleResult{databases: 3, interrupted: true}, nil
		case <-canceled:
			return cycleResult{}, &Error{Code: ErrCanceled}
		}
	}
}

// hangs returns a cycle that only a cancellation ends.
func hangs(_ int, _, canceled <-chan struct{}) (cycleResult, error) {
	<-canceled
	return cycleResult{}, &Error{Code: ErrCanceled}
}

func (f *fakeEngine) cycle() (cycleResult, error) {
	f.mu.Lock()
	select {
	case <-f.canceled:
		f.mu.Unlock()
		return cycleResult{}, &Error{Code: ErrCanceled}
	default:
	}
	f.starts = append(f.starts, time.Now())
	n, start := len(f.starts), time.Now()
	finished := make(chan struct{})
	f.finished = finished
	f.mu.Unlock()

	result, err := f.run(n, finished, f.canceled)

	f.mu.Lock()
	defer f.mu.Unlock()
	f.finished = nil
	if err == nil {
		f.st.cycles++
		f.st.lastScan = start
		f.st.databases = result.databases
		f.st.uploadsSuccess += result.uploaded
		f.st.calls.put += result.uploaded
	}
	return result, err
}

func (f *fakeEngine) stats() (coreStats, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.st, nil
}

func (f *fakeEngine) failures() ([]failure, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fails, nil
}

func (f *fakeEngine) nextEvents() ([]event, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := min(len(f.events), 2)
	events := f.events[:n]
	f.events = f.events[n:]
	return events, nil
}

func (f *fakeEngine) setCredentials(c credentials) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.creds = append(f.creds, c)
	return nil
}

func (f *fakeEngine) exclude(string) error { return nil }

func (f *fakeEngine) acquire(takeover bool, _ time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.takeover = takeover
	return f.acquireErr
}

func (f *fakeEngine) release(time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.released = true
	return nil
}

func (f *fakeEngine) carry(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.carries = append(f.carries, on)
}

func (f *fakeEngine) flush() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.flushed = append(f.flushed, len(f.starts))
}

func (f *fakeEngine) sweep() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sweeps++
}

func (f *fakeEngine) finish() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.finished != nil {
		select {
		case <-f.finished:
		default:
			close(f.finished)
		}
	}
}

func (f *fakeEngine) cancel() {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.canceled:
	default:
		close(f.canceled)
	}
}

func (f *fakeEngine) close() {
	f.cancel()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
}

func (f *fakeEngine) add(events ...event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, events...)
}

func (f *fakeEngine) cycles() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.starts)
}

func (f *fakeEngine) isClosed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.closed
}

// fakeFleet stands in for the core where a test needs rows of a certain kind.
type fakeFleet struct {
	planned  planResult
	task     fakeTask // what every task comes to
	startErr error
	present  []string
	hostsErr error

	opts    []taskOptions // of the tasks started
	signIns int
	closed  bool
	open    int // tasks
}

func (f *fakeFleet) plan(int) (planResult, error) { return f.planned, nil }
func (f *fakeFleet) hosts() ([]string, error)     { return f.present, f.hostsErr }
func (f *fakeFleet) signIn(context.Context)       { f.signIns++ }
func (f *fakeFleet) cancel()                      {}
func (f *fakeFleet) close()                       { f.closed = true }

func (f *fakeFleet) startTask(opt taskOptions) (task, error) {
	f.opts = append(f.opts, opt)
	if f.startErr != nil {
		return nil, f.startErr
	}
	t := f.task
	t.fleet = f
	f.open++
	return &t, nil
}

// fakeTask gives its rows one at a time, then its error or its end.
type fakeTask struct {
	fleet *fakeFleet
	rows  []row
	p     progress // as of the end
	err   error
}

func (t *fakeTask) next(time.Duration) ([]row, progress, error) {
	if len(t.rows) > 0 {
		rows := t.rows[:1]
		t.rows = t.rows[1:]
		return rows, progress{}, nil
	}
	p := t.p
	p.finished = t.err == nil
	return nil, p, t.err
}

func (t *fakeTask) close() { t.fleet.open-- }

// runOn carries out a command line on a fleet.
func runOn(t *testing.T, cfg *Config, f *fakeFleet, args ...string) (out, errOut string, err error) {
	t.Helper()
	var outBuf, errBuf bytes.Buffer
	err = newTestEnv(t, cfg, func(*Config) (fleet, error) { return f, nil }, &outBuf, &errBuf).run(t.Context(), args)
	if len(f.opts) > 0 && (f.open != 0 || !f.closed || f.signIns == 0) {
		t.Errorf("%v: %d tasks open, closed %v, signed in %d times", args, f.open, f.closed, f.signIns)
	}
	return outBuf.String(), errBuf.String(), err
}

func newTestEnv(t *testing.T, cfg *Config, open func(*Config) (fleet, error), out, errOut io.Writer) *env {
	return &env{
		load: func(configPath string, expandEnv bool) (*Config, error) {
			if configPath != "/etc/litestream.yml" && configPath != "/other.yml" {
				t.Errorf("config path %q", configPath)
			}
			return cfg, nil
		},
		defaultConfigPath: func() string { return "/etc/litestream.yml" },
		open:              open,
		out:               out,
		errOut:            errOut,
	}
}

// logBuffer collects what is logged.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// captureLog sends the default logger's lines to a buffer for the test.
func captureLog(t *testing.T) *logBuffer {
	t.Helper()
	var buf logBuffer
	old := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&buf, nil)))
	t.Cleanup(func() { slog.SetDefault(old) })
	return &buf
}

func fileConfig() *Config {
	return &Config{
		DiscoveryPattern: "/data/*.db",
		SyncInterval:     30 * time.Second,
		Format:           "lz4",
		File:             &FileConfig{Directory: "/backup", Path: "{{tenant}}"},
	}
}

func newFakeReplicator(ctx context.Context, f *fakeEngine) *UltraSimpleReplicator {
	return newReplicator(ctx, fileConfig(), "v1", f)
}

var errTest = errors.New("marker")
