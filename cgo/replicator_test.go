package multidb

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// startTimes are the starts of cycles, relative to the first.
func startTimes(f *fakeEngine) []time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	var times []time.Duration
	for _, start := range f.starts {
		times = append(times, start.Sub(f.starts[0]))
	}
	return times
}

func wantStarts(t *testing.T, f *fakeEngine, want ...time.Duration) {
	t.Helper()
	got := startTimes(f)
	if len(got) != len(want) {
		t.Fatalf("cycles started at %v, want %v", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("cycles started at %v, want %v", got, want)
		}
	}
}

func TestReplicator_Loop(t *testing.T) {
	t.Run("IntervalFromStartToStart", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeEngine()
			f.run = takes(10 * time.Second)
			r := newFakeReplicator(t.Context(), f)
			r.Start()
			time.Sleep(95 * time.Second)
			if err := r.Close(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			wantStarts(t, f, 0, 30*time.Second, 60*time.Second, 90*time.Second)
			if got := r.snapshot.Load().cycleOverruns; got != 0 {
				t.Fatalf("overruns=%d, want 0", got)
			}
		})
	})

	t.Run("OverrunIsFollowedAtOnceByOne", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeEngine()
			f.run = takes(time.Second, 100*time.Second, time.Second)
			r := newFakeReplicator(t.Context(), f)
			r.Start()
			time.Sleep(195 * time.Second)
			if err := r.Close(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			wantStarts(t, f, 0, 30*time.Second, 130*time.Second, 160*time.Second, 190*time.Second)
			if got := r.snapshot.Load().cycleOverruns; got != 1 {
				t.Fatalf("overruns=%d, want 1", got)
			}
		})
	})

	t.Run("FailedCycleIsRetried", func(t *testing.T) {
		logs := captureLog(t)
		synctest.Test(t, func(t *testing.T) {
			f := newFakeEngine()
			f.run = func(n int, _, _ <-chan struct{}) (cycleResult, error) {
				if n == 2 {
					return cycleResult{}, &Error{Code: ErrNotFound, Message: "prefix is gone"}
				}
				return cycleResult{databases: 3}, nil
			}
			r := newFakeReplicator(t.Context(), f)
			r.Start()
			time.Sleep(45 * time.Second)
			s := r.snapshot.Load()
			if s.cycles != 1 || s.databases != 3 || s.cyclesFailed != 1 || s.cycleError != "prefix is gone" {
				t.Fatalf("after the failed cycle: %+v", s)
			}
			time.Sleep(30 * time.Second)
			if s := r.snapshot.Load(); s.cycles != 2 || s.cyclesFailed != 1 || s.cycleError != "" {
				t.Fatalf("after the next cycle: %+v", s)
			}
			if err := r.Close(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			wantStarts(t, f, 0, 30*time.Second, 60*time.Second)
		})
		if !strings.Contains(logs.String(), "prefix is gone") {
			t.Fatalf("not logged: %s", logs)
		}
	})

	t.Run("StopsWithContext", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			f := newFakeEngine()
			f.run = takes(time.Minute)
			r := newFakeReplicator(ctx, f)
			r.Start()
			time.Sleep(time.Second)
			cancel()
			r.active.Wait()
			if err := r.Close(t.Context(), time.Minute); err != nil {
				t.Fatal(err)
			}
			wantStarts(t, f, 0) // no last cycle for a caller that has given up
		})
	})
}

// Between two cycles the target is renewed: that takes credentials as well.
func TestReplicator_CredentialsBetweenCycles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEngine()
		f.run = takes(time.Second)
		r := newFakeReplicator(t.Context(), f)
		r.cfg.SyncInterval = 6 * time.Hour
		r.creds = newCredentialSource(&S3Config{}, f.setCredentials, logger())
		r.creds.load = func(context.Context, *S3Config) (aws.CredentialsProvider, error) { return &fakeProvider{}, nil }
		r.Start()
		for range 5 * 60 {
			time.Sleep(time.Minute)
			synctest.Wait()
			f.mu.Lock()
			left := time.Until(f.creds[len(f.creds)-1].expires)
			f.mu.Unlock()
			if left <= 0 {
				t.Fatalf("expired %s ago", -left)
			}
		}
		if err := r.Close(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		wantStarts(t, f, 0)
	})
}

func TestReplicator_Close(t *testing.T) {
	t.Run("RunsOneLastCycle", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeEngine()
			f.run = takes(time.Second)
			r := newFakeReplicator(t.Context(), f)
			r.Start()
			time.Sleep(10 * time.Second)
			if err := r.Close(t.Context(), time.Minute); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
			wantStarts(t, f, 0, 10*time.Second)
			if !f.isClosed() {
				t.Fatal("core not closed")
			}
			if !slices.Equal(f.flushed, []int{1}) {
				t.Fatalf("flushed after %v cycles, want before the last one", f.flushed)
			}
		})
	})

	t.Run("FinishesWhatIsUnderWayFirst", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeEngine()
			f.run = takes(time.Hour, time.Second)
			r := newFakeReplicator(t.Context(), f)
			r.Start()
			time.Sleep(10 * time.Second)
			if err := r.Close(t.Context(), time.Minute); err != nil {
				t.Fatal(err)
			}
			wantStarts(t, f, 0, 10*time.Second)
		})
	})

	t.Run("NoLastCycleWithoutTimeout", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeEngine()
			f.run = takes(time.Second)
			r := newFakeReplicator(t.Context(), f)
			r.Start()
			time.Sleep(10 * time.Second)
			if err := r.Close(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			wantStarts(t, f, 0)
			if !f.released {
				t.Fatal("the target was not given back")
			}
			if f.flushed != nil {
				t.Fatal("flushed without a last cycle")
			}
		})
	})

	t.Run("LastCycleEndsWithShutdownSyncTimeout", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeEngine()
			f.run = takes(time.Second, time.Hour)
			r := newFakeReplicator(t.Context(), f)
			r.Start()
			time.Sleep(10 * time.Second)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			start := time.Now()
			if err := r.Close(ctx, 5*time.Second); !errors.Is(err, ErrCanceled) {
				t.Fatalf("err=%v, want canceled", err)
			}
			if elapsed := time.Since(start); elapsed != 5*time.Second {
				t.Fatalf("took %s", elapsed)
			}
			if !f.isClosed() {
				t.Fatal("core not closed")
			}
		})
	})

	t.Run("ReturnsBeforeDeadlineWhenTargetHangs", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeEngine()
			f.run = hangs
			r := newFakeReplicator(t.Context(), f)
			r.Start()
			time.Sleep(10 * time.Second)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			start := time.Now()
			wantError(t, r.Close(ctx, time.Minute), "multi_db: the last cycle was cut off")
			if elapsed := time.Since(start); elapsed != 9*time.Second {
				t.Fatalf("took %s", elapsed)
			}
			wantStarts(t, f, 0)
			if !f.isClosed() {
				t.Fatal("core not closed")
			}
		})
	})

	t.Run("ReturnsAtDeadlineWhenNothingHelps", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			release := make(chan struct{})
			f := newFakeEngine()
			f.run = func(int, <-chan struct{}, <-chan struct{}) (cycleResult, error) {
				<-release
				return cycleResult{}, &Error{Code: ErrCanceled}
			}
			r := newFakeReplicator(t.Context(), f)
			r.Start()
			time.Sleep(10 * time.Second)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			start := time.Now()
			if err := r.Close(ctx, time.Minute); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("err=%v", err)
			}
			if elapsed := time.Since(start); elapsed != 10*time.Second {
				t.Fatalf("took %s", elapsed)
			}
			close(release)
		})
	})

	t.Run("ShortDeadlineKeepsMargin", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeEngine()
			f.run = hangs
			r := newFakeReplicator(t.Context(), f)
			r.Start()
			time.Sleep(10 * time.Second)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			start := time.Now()
			wantError(t, r.Close(ctx, time.Minute), "multi_db: the last cycle was cut off")
			if elapsed := time.Since(start); elapsed >= time.Second {
				t.Fatalf("took %s", elapsed)
			}
		})
	})

	t.Run("Idempotent", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeEngine()
			f.run = takes(time.Second)
			r := newFakeReplicator(t.Context(), f)
			r.Start()
			r.Start()
			time.Sleep(10 * time.Second)
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					if err := r.Close(t.Context(), time.Minute); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			r.Start()
			if err := r.Once(t.Context()); !errors.Is(err, errClosed) {
				t.Fatalf("Once after Close: %v", err)
			}
			wantStarts(t, f, 0, 10*time.Second)
		})
	})

	t.Run("LastCycleSettles", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeEngine()
			f.run = func(n int, _, _ <-chan struct{}) (cycleResult, error) {
				f.mu.Lock()
				defer f.mu.Unlock()
				f.st.unsynced, f.st.databasesFailed = 2, 1 // one waits for the next second
				if n == 3 {
					f.st.unsynced = 1
				}
				return cycleResult{databases: 3, failed: 1}, nil
			}
			r := newFakeReplicator(t.Context(), f)
			r.Start()
			time.Sleep(10 * time.Second)
			if err := r.Close(t.Context(), time.Minute); err != nil {
				t.Fatal(err)
			}
			if f.cycles() != 3 {
				t.Fatalf("cycles=%d, want 3", f.cycles())
			}
		})
	})

	t.Run("NothingStarted", func(t *testing.T) {
		f := newFakeEngine()
		r := newFakeReplicator(t.Context(), f)
		if err := r.Close(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		if f.cycles() != 0 || !f.isClosed() {
			t.Fatalf("cycles=%d closed=%v", f.cycles(), f.isClosed())
		}
	})

	t.Run("DuringOnce", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeEngine()
			f.run = takes(time.Hour)
			r := newFakeReplicator(t.Context(), f)
			once := make(chan error, 1)
			go func() { once <- r.Once(t.Context()) }()
			time.Sleep(time.Second)
			if err := r.Close(t.Context(), time.Minute); err != nil {
				t.Fatal(err)
			}
			if err := <-once; err == nil || !strings.Contains(err.Error(), "stopped before") {
				t.Fatalf("Once: %v", err)
			}
			wantStarts(t, f, 0)
		})
	})
}

func TestReplicator_Once(t *testing.T) {
	for _, tt := range []struct {
		name   string
		result cycleResult
		err    error
		want   []string // parts of the error; none: no error
	}{
		{name: "OK", result: cycleResult{databases: 5, changed: 5, uploaded: 5}},
		{name: "Failed", result: cycleResult{databases: 5, failed: 2},
			want: []string{"2 of 5 databases could not be backed up", "/data/a.db: read: locked"}},
		{name: "WalkFailures", result: cycleResult{databases: 5, walkFailures: 1},
			want: []string{"1 directory or file could not be looked at"}},
		{name: "Error", err: &Error{Code: ErrAccess, Message: "/data: permission denied"},
			want: []string{"/data: permission denied"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFakeEngine()
			f.run = func(int, <-chan struct{}, <-chan struct{}) (cycleResult, error) { return tt.result, tt.err }
			f.fails = []failure{{path: "/data/a.db", stage: "read", message: "locked", cycles: 1}}
			r := newFakeReplicator(t.Context(), f)
			err := r.Once(t.Context())
			if (err != nil) != (len(tt.want) > 0) {
				t.Fatalf("err=%v, want %q", err, tt.want)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Fatalf("err=%v, want %q", err, want)
				}
			}
			if err := r.Close(t.Context(), time.Minute); err != nil {
				t.Fatal(err)
			}
			if f.cycles() != 1 {
				t.Fatalf("cycles=%d, want 1: Close after Once must not run another", f.cycles())
			}
		})
	}

	t.Run("Canceled", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeEngine()
			f.run = hangs
			r := newFakeReplicator(t.Context(), f)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := r.Once(ctx); !errors.Is(err, ErrCanceled) || !errors.Is(err, context.Canceled) {
				t.Fatalf("err=%v", err)
			}
		})
	})
}

// What waits for min_interval is no failure, and no reason for another cycle.
func TestReplicator_OnceWaiting(t *testing.T) {
	for _, tt := range []struct {
		unsynced, failed uint64
		cycles           int
		want             string
	}{
		{unsynced: 3, cycles: 1},
		{unsynced: 4, failed: 1, cycles: 1, want: "1 of 5 databases could not be backed up"},
		{unsynced: 4, cycles: 2, want: "1 of 5 databases are not backed up yet"},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeEngine()
			f.run = func(int, <-chan struct{}, <-chan struct{}) (cycleResult, error) {
				return cycleResult{databases: 5, waiting: 3, failed: tt.failed}, nil
			}
			f.st.unsynced = tt.unsynced
			r := newFakeReplicator(t.Context(), f)
			err := r.Once(t.Context())
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("err=%v, want %q", err, tt.want)
			}
			if err := r.Close(t.Context(), time.Minute); err != nil {
				t.Error(err)
			}
			if f.cycles() != tt.cycles || f.flushed != nil {
				t.Errorf("%d cycles, flushed after %v", f.cycles(), f.flushed)
			}
		})
	}
}

// A sweep that is due is waited for, as the process ends with the cycle.
func TestReplicator_OnceWithDueSweep(t *testing.T) {
	for _, age := range []time.Duration{23 * time.Hour, 25 * time.Hour} {
		f := newFakeEngine()
		f.st.lastSweep = time.Now().Add(-age)
		f.run = takes(0)
		r := newFakeReplicator(t.Context(), f)
		if err := r.Once(t.Context()); err != nil {
			t.Fatal(err)
		}
		if waited := f.sweeps == 1; waited != (age > 24*time.Hour) {
			t.Errorf("%s: %d sweeps", age, f.sweeps)
		}
	}
}

// -once -enforce-retention: a sweep comes first, and its failure is one.
func TestReplicator_OnceWithSweep(t *testing.T) {
	for _, tt := range []struct{ sweep, failed, never bool }{
		{}, {failed: true}, {sweep: true}, {sweep: true, failed: true},
		{sweep: true, never: true}, // the cycle gave up before it
	} {
		logs := captureLog(t)
		f := newFakeEngine()
		f.st.lastSweep = time.Now() // none is due
		f.run = func(int, <-chan struct{}, <-chan struct{}) (cycleResult, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			if swept := f.sweeps == 1; swept != tt.sweep {
				t.Errorf("%+v: %d sweeps before the cycle", tt, f.sweeps)
			}
			f.st.sweep.failed = tt.failed
			if !tt.failed && !tt.never {
				f.st.lastSweep = time.Unix(1700000000, 0)
				f.st.sweep.seconds = 0.1
				f.st.objectsDeleted += 3
			}
			return cycleResult{databases: 5}, nil
		}
		f.st.objectsDeleted = 40
		r := newFakeReplicator(t.Context(), f)
		r.sweep = tt.sweep
		err := r.Once(t.Context())
		if wantErr := tt.sweep && (tt.failed || tt.never); (err != nil) != wantErr ||
			wantErr && !strings.Contains(err.Error(), "retention could not be enforced") {
			t.Errorf("%+v: err=%v", tt, err)
		}
		if n := strings.Count(logs.String(), "msg=sweep system=multi-db objects=0 bytes=0 deleted=3 "); (n == 1) == (tt.failed || tt.never) {
			t.Errorf("%+v: %s", tt, logs)
		}
		if err := r.Close(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReplicator_Logs(t *testing.T) {
	logs := captureLog(t)
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEngine()
		f.run = func(n int, _, _ <-chan struct{}) (cycleResult, error) {
			if n > 1 {
				return cycleResult{databases: 9}, nil
			}
			f.add(event{eventFailed, "/data/a.db", "read", "locked by 42"},
				event{eventNotDatabase, "/data/b.db", "read", "no magic"},
				event{eventWalkFailed, "/data/c", "walk", "permission denied"})
			time.Sleep(2500 * time.Millisecond)
			if got := logs.String(); !strings.Contains(got, "/data/c") {
				t.Errorf("events are not logged while the cycle runs: %s", got)
			}
			f.add(event{kind: eventStateReset, message: "belongs to another target"},
				event{kind: eventUnreachable, message: "connection refused"},
				event{kind: eventRecovered, path: "/data/a.db"},
				event{kind: eventWarning, message: "clock jumped"})
			return cycleResult{databases: 9, changed: 2, uploaded: 1, failed: 1, bytesUploaded: 77}, nil
		}
		r := newFakeReplicator(t.Context(), f)
		r.Start()
		time.Sleep(100 * time.Second)
		if err := r.Close(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	})
	got := logs.String()
	for _, want := range []string{
		`level=WARN msg="database cannot be backed up" system=multi-db path=/data/a.db stage=read error="locked by 42"`,
		`level=INFO msg="database is backed up again" system=multi-db path=/data/a.db`,
		`level=WARN msg="file is not a database, not backed up" system=multi-db path=/data/b.db`,
		`path=/data/c error="permission denied"`, `reason="belongs to another target"`,
		`error="connection refused"`, `message="clock jumped"`,
		`level=INFO msg=cycle system=multi-db databases=9 changed=2 uploaded=1 unchanged=0 failed=1`,
	} {
		if strings.Count(got, want) != 1 {
			t.Errorf("want one line with %s in:\n%s", want, got)
		}
	}
	if n := strings.Count(got, "msg=cycle"); n != 1 {
		t.Errorf("%d lines for cycles, want 1: those that did nothing are not logged\n%s", n, got)
	}
}

func TestReplicator_LogsWhenNothingMatches(t *testing.T) {
	logs := captureLog(t)
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEngine()
		f.run = func(int, <-chan struct{}, <-chan struct{}) (cycleResult, error) { return cycleResult{}, nil }
		r := newFakeReplicator(t.Context(), f)
		r.Start()
		time.Sleep(100 * time.Second)
		if err := r.Close(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	})
	if n := strings.Count(logs.String(), "no database matches"); n != 1 {
		t.Fatalf("logged %d times, want 1: %s", n, logs)
	}
}

func TestRealPath(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	mustSymlink := func(target, name string) {
		t.Helper()
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "data", "a.db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mustSymlink("data", "alias")
	mustSymlink("data/a.db", "link.db")
	mustSymlink("alias/new.db", "dangling.db")
	mustSymlink(filepath.Join(dir, "dangling.db"), "dangling2.db")
	mustSymlink("loop", "loop")

	for name, want := range map[string]string{
		"data/a.db":        "data/a.db",
		"alias/a.db":       "data/a.db",
		"link.db":          "data/a.db",
		"alias/absent.db":  "data/absent.db",
		"dangling.db":      "data/new.db",
		"dangling2.db":     "data/new.db",
		"absent/absent.db": "absent/absent.db",
	} {
		got, err := realPath(filepath.Join(dir, name))
		if err != nil || got != filepath.Join(dir, want) {
			t.Errorf("realPath(%s)=%s, %v; want %s", name, got, err, want)
		}
	}
	if _, err := realPath(filepath.Join(dir, "loop")); err == nil {
		t.Error("a loop of links resolved")
	}
}

func TestTargetName(t *testing.T) {
	for _, tt := range []struct {
		cfg  *Config
		want string
	}{
		{&Config{File: &FileConfig{Directory: "/backup/", Path: "{{t}}"}}, "file:///backup/{{t}}"},
		{&Config{S3: &S3Config{Bucket: "b", Path: "{{t}}"}}, "s3://b/{{t}}"},
		{&Config{S3: &S3Config{Bucket: "b", Path: "x/{{t}}", Endpoint: "http://u:secret@h:9000",
			AccessKeyID: "AKIA", SecretAccessKey: "secret"}}, "s3://b/x/{{t}} @http://h:9000"},
	} {
		if got := targetName(tt.cfg); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}
