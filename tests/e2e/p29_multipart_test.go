package e2e

import (
	"fmt"
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
	build(t, large, "PRAGMA synchronous=OFF", "PRAGMA journal_mode=MEMORY",
		fmt.Sprintf("INSERT INTO t(tag, pad) WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<%d) SELECT 'big', randomblob(1000000) FROM c", mb))
	want := remember(t, large)
	proxy := startProxy(t, strings.TrimPrefix(s.resign(t), "http://"), nil)
	c := settings{pattern: seedPattern(root), interval: "1s", target: s.target(proxy.url()), keys: []string{"state_dir: " + state, "memory_limit: 32MB"}}

	// Killed once some parts have arrived.
	clock := newClock(t)
	clock.set(time.Now().Add(time.Second))
	d := replicate(t, c, clock.env())
	waitFor(t, 60*time.Second, "three parts", func() bool { return s.operations(0)["UploadPart"] >= 3 })
	d.kill()
	if s.operations(0)["CompleteMultipartUpload"] != 0 {
		t.Fatal("complete before it was killed: the test shows nothing")
	}
	if n := len(s.unfinished()); n != 1 {
		t.Errorf("%d unfinished uploads after the kill, want 1: the test shows nothing", n)
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
	if limit := int64(32+130) << 20; peak > limit {
		t.Errorf("peak memory %d MB, want at most %d MB", peak>>20, limit>>20)
	}
	if ops["CompleteMultipartUpload"] != 1 || ops["UploadPart"] < 3 || ops["CreateMultipartUpload"] != 1 {
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
	if left := s.unfinished(); len(left) != 0 || st.UploadsAborted != 1 {
		t.Errorf("unfinished uploads %q, uploads_aborted %d", left, st.UploadsAborted)
	}

	// A part that is refused: the next cycle does it again, and leaves nothing.
	build(t, large, "UPDATE t SET tag='changed' WHERE id=1")
	want = remember(t, large)
	var parts atomic.Int64
	proxy.set(func(_ int64, r *http.Request) int {
		if r.URL.Query().Has("partNumber") && parts.Add(1) == 2 {
			return 403
		}
		return 0
	})
	d.wait(60*time.Second, "the refused part to be the database's failure", func(s stats) bool { return s.DatabasesFailed == 1 })
	proxy.set(nil)
	d.waitSynced(90 * time.Second)
	d.stop()
	if left := s.unfinished(); len(left) != 0 {
		t.Errorf("unfinished uploads after a refused part: %q", left)
	}
	verifyTarget(t, root, s.dir(), paths)

	// And back, by both commands.
	must(t, os.RemoveAll(root))
	config := c.write(t, 0)
	r, restorePeak := measured(t, 90*time.Second, verbArgs(config, "restore", "-match", large), nil)
	takeApart(t, r).good(t)
	t.Logf("peak memory of the restore %d MB", restorePeak>>20)
	if limit := int64(32+130) << 20; restorePeak > limit {
		t.Errorf("peak memory of the restore %d MB, want at most %d MB", restorePeak>>20, limit>>20)
	}
	if err := want.isBack(large); err != nil {
		t.Error(err)
	}
	if sum, err := fileSum(restore(t, config, large)); err != nil || sum != want.sum {
		t.Errorf("litestream restore: another content, %v", err)
	}
}
