package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"
)

// stock is the pinned release, built from the module cache without our patches.
var stock = sync.OnceValues(func() (string, error) {
	path := filepath.Join(sharedDir, "stock-litestream")
	// Outside the workspace, where the module is the patched one.
	list := exec.Command("go", "list", "-m", "-f", "{{.Version}}", "github.com/benbjohnson/litestream")
	list.Env = append(os.Environ(), "GOWORK=off")
	dir, err := list.Output()
	if err != nil {
		return "", err
	}
	if v := strings.TrimSpace(string(dir)); v != "v0.5.18" {
		return "", fmt.Errorf("go.mod pins %s", v)
	}
	cmd := exec.Command("go", "build", "-o", path, "-trimpath", "-tags", "osusergo,netgo,sqlite_omit_load_extension",
		"-ldflags", "-X main.Version="+os.Getenv("E2E_STOCK_VERSION"), "github.com/benbjohnson/litestream/cmd/litestream")
	cmd.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build of stock litestream: %v\n%s", err, out)
	}
	return path, nil
})

// Point 10: dbs: and multi_db in one file both replicate; a database that the
// pattern matches cannot be registered; others can.
func Test10BothSections(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	root := filepath.Join(base, "data")
	paths := makeFleet(t, root, 20)
	app := filepath.Join(base, "app.db")
	simple(t, app, "PRAGMA journal_mode=WAL")
	other := filepath.Join(base, "other.db")
	simple(t, other, "PRAGMA journal_mode=WAL")
	target := filepath.Join(base, "target")
	sock := filepath.Join(base, "ctl.sock")
	c := settings{pattern: seedPattern(root), interval: "1s", target: fileTarget(target), top: []string{
		"socket:", "  enabled: true", "  path: " + sock,
		"dbs:", "  - path: " + app, "    replica:", "      path: " + base + "/replica", "      sync-interval: 100ms"}}
	must(t, os.Mkdir(target, 0o755))
	d := replicate(t, c)
	d.waitSynced(20 * time.Second)
	w := newWriter(t)
	w.open(app, "", "PRAGMA busy_timeout=5000")
	w.exec(app, "INSERT INTO t(v) VALUES('by litestream')")
	change(t, paths[3])
	d.waitCycles(2, 20*time.Second)
	verifyTarget(t, root, target, paths)
	config := c.write(t, 0)
	waitFor(t, 20*time.Second, "Litestream to replicate dbs:", func() bool {
		out := filepath.Join(t.TempDir(), "app.db")
		r := tryRestore(t, config, app, out)
		return r.code == 0 && queryString(t, out, "SELECT count(*) FROM t WHERE v='by litestream'") == "1"
	})
	sameImage(t, paths[3], restore(t, config, paths[3]))

	register := func(path string) result {
		return litestream(t, []string{"register", "-socket", sock, "-replica", "file://" + base + "/registered", path})
	}
	link := filepath.Join(base, "link")
	must(t, os.Symlink(root, link))
	before := photo(t, root)
	for _, p := range []string{paths[0], strings.Replace(paths[1], root, link, 1), strings.Replace(paths[2], "/tenants/", "/tenants/../tenants/", 1)} {
		r := register(p)
		if r.code == 0 || !strings.Contains(r.stderr, "multi_db") {
			t.Errorf("register %s: exit %d, want a refusal that names multi_db: %s", p, r.code, r.all())
		}
	}
	samePhoto(t, before, photo(t, root), underDir(filepath.Join(root, ".litestream-multi-db")))
	if r := register(other); r.code != 0 {
		t.Errorf("register %s: exit %d: %s", other, r.code, r.all())
	}
	waitFor(t, 20*time.Second, "the registered database to replicate", func() bool { return exists(base + "/registered") })
	d.stop()
	w.quit()
}

// A hard link to a database that dbs: manages: the core must not open it, as
// closing it would drop Litestream's own locks.
func Test10HardLink(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	root := filepath.Join(base, "data")
	paths := makeFleet(t, root, 3)
	app := filepath.Join(base, "app.db")
	simple(t, app, "PRAGMA journal_mode=WAL")
	linked := filepath.Join(filepath.Dir(paths[0]), "linked.db")
	must(t, os.Link(app, linked))
	c := settings{pattern: seedPattern(root), interval: "1s", target: fileTarget(base + "/target"), top: []string{
		"dbs:", "  - path: " + app, "    replica:", "      path: " + base + "/replica"}}
	must(t, os.Mkdir(base+"/target", 0o755))
	r := litestream(t, []string{"replicate", "-once", "-config", c.write(t, freePort(t))})
	if r.code != 1 || !strings.Contains(r.all(), "linked.db") {
		t.Errorf("exit %d, want 1 and the name of the link in\n%s", r.code, r.all())
	}
	if n := len(objects(t, base+"/target", keyOf(root, linked))); n != 0 {
		t.Error("a database of dbs: was read by multi_db")
	}
}

// The same link made while we run, and a lock that Litestream must not lose.
func Test10HardLinkAtRunTime(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	root := filepath.Join(base, "data")
	paths := makeFleet(t, root, 3)
	app := filepath.Join(base, "app.db")
	simple(t, app, "PRAGMA journal_mode=WAL")
	must(t, os.Mkdir(base+"/target", 0o755))
	c := settings{pattern: seedPattern(root), interval: "1s", target: fileTarget(base + "/target"), top: []string{
		"dbs:", "  - path: " + app, "    replica:", "      path: " + base + "/replica", "      sync-interval: 100ms"}}
	d := replicate(t, c)
	d.waitSynced(20 * time.Second)
	waitFor(t, 20*time.Second, "Litestream to open its database", func() bool { return exists(base + "/replica") })
	w := newWriter(t)
	w.open(app, "", "PRAGMA busy_timeout=5000")
	w.exec(app, seqSchema)
	var held []string
	waitFor(t, 20*time.Second, "Litestream to hold its locks", func() bool {
		held = d.locks(app)
		return len(held) > 0
	})
	linked := filepath.Join(filepath.Dir(paths[0]), "linked.db")
	must(t, os.Link(app, linked))
	st := d.waitCycles(3, 30*time.Second)
	if st.DatabasesFailed != 1 || len(st.Failures) != 1 || st.Failures[0].Path != linked {
		t.Errorf("want a failure of %s: %+v", linked, st.Failures)
	}
	if n := len(objects(t, base+"/target", keyOf(root, linked))); n != 0 {
		t.Error("a database of dbs: was read by multi_db")
	}
	if now := d.locks(app); fmt.Sprint(now) != fmt.Sprint(held) {
		t.Errorf("Litestream held %v on its database, and now %v", held, now)
	}
	// The link gone, everybody is content, and Litestream has every commit.
	must(t, os.Remove(linked))
	w.exec(app, "UPDATE head SET n=77")
	d.wait(20*time.Second, "no failure", func(s stats) bool { return s.DatabasesFailed == 0 })
	config := c.write(t, 0)
	waitFor(t, 20*time.Second, "Litestream to have the last commit", func() bool {
		out := filepath.Join(t.TempDir(), "app.db")
		r := tryRestore(t, config, app, out)
		return r.code == 0 && queryString(t, out, "SELECT n FROM head") == "77"
	})
	d.stop()
	w.quit()
}

// locks returns the classic POSIX locks that the daemon holds on a file.
func (d *daemon) locks(path string) (out []string) {
	d.t.Helper()
	b := must1[[]byte](d.t)(os.ReadFile("/proc/locks"))
	pid, ino := fmt.Sprint(d.cmd.Process.Pid), fmt.Sprint(":", inode(must1[os.FileInfo](d.t)(os.Stat(path))))
	for line := range strings.SplitSeq(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) >= 8 && f[1] == "POSIX" && f[4] == pid && strings.HasSuffix(f[5], ino) {
			out = append(out, strings.Join(f[3:], " "))
		}
	}
	sort.Strings(out)
	return out
}

var (
	logTime  = regexp.MustCompile(`time=\S+ `)
	logNoise = regexp.MustCompile(`(duration|elapsed|size|offset|version|pid)=\S+`)
)

func normalLog(s, dir string) string {
	s = strings.ReplaceAll(s, dir, "DIR")
	s = logTime.ReplaceAllString(s, "")
	return logNoise.ReplaceAllString(s, "$1=…")
}

// Without multi_db the log and the files are those of stock Litestream.
func Test10SameAsStock(t *testing.T) {
	t.Parallel()
	plain, err := stock()
	must(t, err)
	seed := filepath.Join(t.TempDir(), "seed.db")
	simple(t, seed, "PRAGMA journal_mode=WAL")
	seedBytes := must1[[]byte](t)(os.ReadFile(seed))
	type outcome struct{ logs, files string }
	run := func(program string) (o outcome) {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "a.db"), seedBytes, 0o644))
		must(t, os.MkdirAll(filepath.Join(dir, "many"), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, "many/b.db"), seedBytes, 0o644))
		config := filepath.Join(dir, "litestream.yml")
		must(t, os.WriteFile(config, fmt.Appendf(nil, `dbs:
  - path: %[1]s/a.db
    replica:
      path: %[1]s/replica-a
  - dir: %[1]s/many
    pattern: "*.db"
    replica:
      path: %[1]s/replica-many
`, dir), 0o644))
		var logs strings.Builder
		step := func(args ...string) {
			r := litestream(t, args, withBinary(program))
			fmt.Fprintf(&logs, "$ %v\nexit %d\n%s\n--\n%s\n", args[0], r.code, r.stdout, r.stderr)
		}
		step("replicate", "-once", "-config", config)
		step("replicate", "-once", "-force-snapshot", "-config", config)
		step("databases", "-config", config)
		step("restore", "-config", config, "-o", dir+"/restored.db", dir+"/a.db")
		step("restore", "-config", config, dir+"/nowhere.db")
		step("restore")
		step("replicate", "-config", dir+"/missing.yml")
		must(t, os.WriteFile(config, []byte("addr: \":0\"\n"), 0o644))
		var files []string
		must(t, filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
			if err == nil {
				files = append(files, fmt.Sprint(info.Mode(), " ", strings.TrimPrefix(path, dir)))
			}
			return err
		}))
		sort.Strings(files)
		lines := strings.Split(normalLog(logs.String(), dir), "\n")
		o.logs = strings.Join(lines, "\n")
		o.files = strings.Join(files, "\n")
		if a, b := queryString(t, dir+"/restored.db", "SELECT count(*) FROM t"), "3"; a != b {
			t.Errorf("%s: restored %s rows", program, a)
		}
		return o
	}
	a, b := run(plain), run(program)
	// Databases are synced side by side: lines may come in another order.
	if x, y := sortedLines(a.logs), sortedLines(b.logs); x != y {
		t.Errorf("logs differ\nstock:\n%s\n\nours:\n%s", a.logs, b.logs)
	}
	if a.files != b.files {
		t.Errorf("files differ\nstock:\n%s\n\nours:\n%s", a.files, b.files)
	}
}

func sortedLines(s string) string {
	l := strings.Split(s, "\n")
	sort.Strings(l)
	return strings.Join(l, "\n")
}

// -exec works as it does: the process ends with its command, after a last cycle.
func Test10Exec(t *testing.T) {
	t.Parallel()
	o := newOne(t)
	p := o.make("x")
	o.c.interval = "1h"
	src := filepath.Join(t.TempDir(), "new.db")
	simple(t, src)
	fill(t, src, 50)
	// The command changes a database long before the next tick, and ends.
	waits := fmt.Sprintf(`i=0; while [ $i -lt 200 ] && ! ls %[1]s/p/d/b/x/*.db.lz4 >/dev/null 2>&1; do i=$((i+1)); sleep 0.1; done; cp %[2]s %[3]s`,
		quote(o.target), quote(src), quote(p))
	script := filepath.Join(t.TempDir(), "cmd.sh")
	must(t, os.WriteFile(script, []byte("#!/bin/sh\n"+waits+"\n"), 0o755))
	r := litestream(t, []string{"replicate", "-exec", script, "-config", o.c.write(t, freePort(t))})
	if r.code != 0 {
		t.Fatalf("exit %d\n%s", r.code, r.all())
	}
	o.check("x")
}

// The version says what it is.
func Test10Version(t *testing.T) {
	t.Parallel()
	r := litestream(t, []string{"version"})
	if r.code != 0 || !strings.HasPrefix(r.stdout, "v0.5.18+multidb") && !strings.Contains(r.stdout, "v0.5.18+multidb") {
		t.Errorf("version: exit %d: %s", r.code, r.all())
	}
}
