package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// unfinished returns the uploads in parts that the gateway knows as unfinished.
func (s *s3server) unfinished() (out []string) {
	s.t.Helper()
	_ = filepath.WalkDir(filepath.Join(s.dir(), ".sgwtmp", "multipart"), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			if rel, _ := filepath.Rel(filepath.Join(s.dir(), ".sgwtmp", "multipart"), path); strings.Count(rel, "/") == 1 {
				out = append(out, rel)
			}
		}
		return nil
	})
	return out
}

// Point 9: a database far larger than the memory goes in parts, and comes back; an
// upload that was killed in the middle leaves nothing for ever.
func Test29Multipart(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	root, state := filepath.Join(t.TempDir(), "data"), t.TempDir()
	paths := makeFleet(t, root, 20)
	mb := envInt("LARGE_MB", 200)
	large := paths[4]
	incompressible(t, large, mb)
	incompressible(t, paths[5], mb*2/5) // beside it
	want, second := remember(t, large), remember(t, paths[5])
	proxy := startProxy(t, strings.TrimPrefix(s.resign(t), "http://"), nil)
	c := settings{pattern: seedPattern(root), interval: "1s", target: s.target(proxy.url()), keys: []string{"state_dir: " + state, "memory_limit: 32MB"}}

	// Killed once some parts have arrived; the others are held back.
	var parts atomic.Int64
	proxy.set(func(_ int64, r *http.Request) int {
		if r.URL.Query().Has("partNumber") && parts.Add(1) > 4 {
			<-r.Context().Done()
		}
		return 0
	})
	clock := newClock(t)
	clock.set(time.Now().Add(time.Second))
	d := replicate(t, c, clock.env())
	waitFor(t, 60*time.Second, "three parts", func() bool { return s.operations(0)["UploadPart"] >= 3 })
	d.kill()
	proxy.set(nil)
	if s.operations(0)["CompleteMultipartUpload"] != 0 {
		t.Fatal("complete before it was killed: the test shows nothing")
	}
	unfinished := len(s.unfinished())
	if unfinished == 0 {
		t.Error("no unfinished upload after the kill: the test shows nothing")
	}
	if len(objects(t, s.dir(), keyOf(root, large))) != 0 {
		t.Error("an object is there that was never finished")
	}

	// Again, and to its end.
	mark := s.mark()
	d = replicate(t, c, clock.env())
	d.waitSynced(90 * time.Second)
	_, peak := d.memory()
	ops := s.operations(mark)
	t.Logf("peak memory %d MB; the server counts %v", peak>>20, ops)
	if limit := int64(32+90) << 20; peak > limit {
		t.Errorf("peak memory %d MB, want at most %d MB", peak>>20, limit>>20)
	}
	if ops["CompleteMultipartUpload"] != 2 || ops["UploadPart"] < 6 || ops["CreateMultipartUpload"] != 2 {
		t.Errorf("the server counts %v", ops)
	}
	verifyTarget(t, root, s.dir(), paths)

	// The killed one's parts are gone after the sweep that is due in time.
	var st sweepStats
	for day := range 10 {
		if len(s.unfinished()) == 0 {
			break
		}
		clock.set(time.Now().Add(time.Duration(day+1) * 25 * time.Hour))
		d.waitCycles(2, 30*time.Second)
	}
	must(t, d.json("/stats", &st))
	if left := s.unfinished(); len(left) != 0 || st.UploadsAborted != unfinished {
		t.Errorf("unfinished uploads %q, uploads_aborted %d", left, st.UploadsAborted)
	}

	// Parts that are refused: a later cycle does it again, and nothing is left.
	build(t, large, "UPDATE t SET tag='changed' WHERE id=1")
	want = remember(t, large)
	proxy.set(func(_ int64, r *http.Request) int {
		if n := r.URL.Query().Get("partNumber"); n != "" && n != "1" {
			return 403
		}
		return 0
	})
	d.wait(60*time.Second, "the refused parts to be the database's failure", func(s stats) bool { return s.DatabasesFailed == 1 })
	proxy.set(nil)
	d.waitSynced(90 * time.Second)
	d.stop()
	if left := s.unfinished(); len(left) != 0 {
		t.Errorf("unfinished uploads after refused parts: %q", left)
	}
	verifyTarget(t, root, s.dir(), paths)

	// And back, by both commands.
	must(t, os.RemoveAll(root))
	config := c.write(t, 0)
	r, restorePeak := measured(t, 90*time.Second, verbArgs(config, "restore"), nil)
	takeApart(t, r).good(t)
	t.Logf("peak memory of the restore %d MB", restorePeak>>20)
	if limit := int64(32+90) << 20; restorePeak > limit {
		t.Errorf("peak memory of the restore %d MB, want at most %d MB", restorePeak>>20, limit>>20)
	}
	if err := second.isBack(paths[5]); err != nil {
		t.Error(err)
	}
	if err := want.isBack(large); err != nil {
		t.Error(err)
	}
	if sum, err := fileSum(restore(t, config, large)); err != nil || sum != want.sum {
		t.Errorf("litestream restore: another content, %v", err)
	}
}

// incompressible adds so many MB to a database that no compression makes smaller.
func incompressible(t testing.TB, path string, mb int) {
	t.Helper()
	build(t, path, "PRAGMA synchronous=OFF", "PRAGMA journal_mode=MEMORY",
		fmt.Sprintf("INSERT INTO t(tag, pad) WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<%d) SELECT 'big', randomblob(1000000) FROM c", mb))
}

// A large object is fetched in ranges. Whatever becomes of it meanwhile, and whatever
// the server makes of ranges: a whole database or none.
func Test29Ranges(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "data")
	at := time.Date(2026, 3, 3, 10, 0, 0, 0, time.UTC)
	path := makeFleet(t, root, 1)[0]
	var images, objects [2][]byte
	for i := range images {
		build(t, path, "DELETE FROM t WHERE tag='big'")
		incompressible(t, path, 40)
		images[i] = sqliteImage(t, path)
		objects[i] = forge(path, images[i], at)
	}
	must(t, os.RemoveAll(root))
	key := keyOf(root, path) + "/" + objectAt(at)
	for _, tt := range []struct {
		name string
		want int // of the images; -1: none
		get  func(s *fakeS3, w http.ResponseWriter, r *http.Request, n int64) bool
	}{
		{"as it should be", 0, func(*fakeS3, http.ResponseWriter, *http.Request, int64) bool { return false }},
		{"replaced after the first", 1, func(s *fakeS3, _ http.ResponseWriter, _ *http.Request, n int64) bool {
			if n == 2 {
				s.put(key, objects[1])
			}
			return false
		}},
		{"replaced again and again", -1, func(s *fakeS3, _ http.ResponseWriter, _ *http.Request, n int64) bool {
			mixed := append(bytes.Clone(objects[n%2][:20<<20]), objects[1-n%2][20<<20:]...)
			s.put(key, mixed)
			return false
		}},
		{"no ranges", 0, func(s *fakeS3, w http.ResponseWriter, _ *http.Request, _ int64) bool {
			_, _ = w.Write(objects[0])
			return true
		}},
		{"another range than asked for", -1, func(s *fakeS3, w http.ResponseWriter, r *http.Request, _ int64) bool {
			if r.Header.Get("Range") == "" {
				http.Error(w, "", http.StatusNotFound)
				return true
			}
			r.Header.Set("Range", "bytes=0-8388607")
			return false
		}},
		{"one in eight cut short", 0, func(_ *fakeS3, w http.ResponseWriter, r *http.Request, _ int64) bool {
			return rand.IntN(8) == 0 && cutShort(w, r, objects[0])
		}},
		{"all but the first cut short", -1, func(_ *fakeS3, w http.ResponseWriter, r *http.Request, n int64) bool {
			return n > 1 && cutShort(w, r, objects[0])
		}},
		{"gone after the first", -1, func(s *fakeS3, w http.ResponseWriter, r *http.Request, n int64) bool {
			if n > 1 {
				http.Error(w, "", http.StatusNotFound)
			}
			return n > 1
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := startFakeS3(t)
			s.put(key, objects[0])
			s.get = func(w http.ResponseWriter, r *http.Request, _ string) bool { return tt.get(s, w, r, s.gets.Load()) }
			config := (settings{pattern: seedPattern(root), target: s.target(seedTemplate), keys: []string{"memory_limit: 16MB"}}).write(t, 0)
			for _, single := range []bool{true, false} {
				s.put(key, objects[0])
				s.gets.Store(0)
				out := t.TempDir()
				file := filepath.Join(out, "x.db")
				args := []string{"restore", "-config", config, "-o", file, path}
				if !single && tt.name == "all but the first cut short" {
					continue // a minute, until the last try
				}
				if !single {
					file = out + strings.TrimPrefix(path, root)
					args = verbArgs(config, "restore", "-output-dir", out)
				}
				r, peak := measured(t, 110*time.Second, args, nil)
				visible, hidden := tree(out)
				if len(hidden) != 0 || peak > 130<<20 {
					t.Errorf("%v: hidden files %q, peak memory %d MB", args[0], hidden, peak>>20)
				}
				if tt.want < 0 {
					if r.code != 1 || len(visible) != 0 {
						t.Errorf("%v: exit %d, files %q\n%s", args[0], r.code, visible, tail(r.all(), 500))
					}
					continue
				}
				if r.code != 0 {
					t.Errorf("%v: exit %d after %d requests\n%s", args[0], r.code, s.gets.Load(), tail(r.all(), 500))
				} else if err := compareImage(images[tt.want], file); err != nil {
					t.Errorf("%v: %v", args[0], err)
				}
			}
		})
	}
}

// cutShort answers a range with its beginning, and drops the connection.
func cutShort(w http.ResponseWriter, r *http.Request, object []byte) bool {
	var from, to int
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); err != nil {
		return false
	}
	w.Header().Set("Content-Length", fmt.Sprint(to-from+1))
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(object)))
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write(object[from : from+100000])
	panic(http.ErrAbortHandler)
}
