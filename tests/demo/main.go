// Command demo backs up 1,000 real SQLite databases with bin/litestream, beside
// running writers, deletes ten of them and brings them back. It says in plain words
// what happens, and exits with 1 if anything differs.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	_ "modernc.org/sqlite"
)

const (
	databases = 1000
	held      = 60 // open in WAL mode by the writer
	rollback  = 60 // written in rollback mode by the writer
	interval  = "2s"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == "writer" {
		if err := writer(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "writer:", err)
			os.Exit(1)
		}
		return
	}
	runtime.LockOSThread() // children die with the thread that made them
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	start := time.Now()
	d := &demo{start: start}
	err := d.run(ctx)
	d.cleanUp()
	if err != nil {
		fmt.Fprintf(os.Stderr, "\nThe demo failed: %v\n", err)
		os.Exit(1)
	}
}

type demo struct {
	start   time.Time
	program string
	dir     string // all files of the demo
	root    string
	config  string
	addr    string
	cmds    []*exec.Cmd
}

func (d *demo) say(format string, args ...any) {
	fmt.Printf("[%4.1fs] %s\n", time.Since(d.start).Seconds(), fmt.Sprintf(format, args...))
}

func (d *demo) cleanUp() {
	for _, c := range d.cmds {
		if c.ProcessState == nil {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
	}
	if d.dir != "" && os.Getenv("KEEP") != "1" {
		_ = os.RemoveAll(d.dir)
	}
}

func (d *demo) run(ctx context.Context) (err error) {
	d.program = os.Getenv("LITESTREAM_BIN")
	if d.program == "" {
		d.program = "bin/litestream"
	}
	if d.program, err = filepath.Abs(d.program); err != nil {
		return err
	}
	if _, err := os.Stat(d.program); err != nil {
		return fmt.Errorf("%w; run make first", err)
	}
	if d.dir, err = os.MkdirTemp("", "litestream-demo-"); err != nil {
		return err
	}
	d.root = filepath.Join(d.dir, "data")
	backup := filepath.Join(d.dir, "backup")
	if err := os.Mkdir(backup, 0o700); err != nil {
		return err
	}

	d.say("Making %d SQLite databases below %s", databases, d.root)
	paths, err := d.makeDatabases(ctx)
	if err != nil {
		return err
	}

	d.addr = freeAddr()
	d.config = filepath.Join(d.dir, "litestream.yml")
	text := fmt.Sprintf(`addr: "%s"
multi_db:
  enabled: true
  discovery_pattern: "%s/*/databases/*/branches/*/tenants/*.db"
  sync_interval: %s
  file:
    directory: %s
    path: "{{project}}/{{database}}/{{branch}}/{{tenant}}"
`, d.addr, d.root, interval, backup)
	if err := os.WriteFile(d.config, []byte(text), 0o600); err != nil {
		return err
	}
	fmt.Printf("\nThe configuration, %s:\n\n%s\n", d.config, indent(text))

	w, err := d.startWriter(paths)
	if err != nil {
		return err
	}
	d.say("A writer has %d of them open in WAL mode and %d in rollback mode; the rest is quiet", held, rollback)
	daemon, logPath, err := d.startLitestream()
	if err != nil {
		return err
	}
	s, err := d.wait(ctx, "the first cycle", func(s stats) bool { return s.Cycles >= 1 })
	if err != nil {
		return d.withLog(logPath, err)
	}
	d.say("First cycle of litestream replicate: %d databases found, %d uploaded, %.1f MB, in %.2f s", s.Databases, s.Uploads, float64(s.Bytes)/1e6, s.CycleSeconds)
	if s.Databases != databases {
		return fmt.Errorf("%d databases found, there are %d", s.Databases, databases)
	}

	changed, err := w.ask("change 30")
	if err != nil {
		return err
	}
	d.say("The writer has committed to %s databases; those in WAL mode have it in the -wal only", changed)
	uploads, cycles := s.Uploads, s.Cycles
	if s, err = d.wait(ctx, "nothing to be unsynced", func(s stats) bool { return s.Cycles > cycles+1 && s.Unsynced == 0 }); err != nil {
		return d.withLog(logPath, err)
	}
	d.say("Nothing is unsynced any more: %d more uploads, %d failed", s.Uploads-uploads, s.Failed)
	fmt.Printf("\nGET http://%s/stats:\n\n%s\n", d.addr, indent(s.raw))

	// The loss: the writer is killed, and ten databases are deleted with all that
	// belongs to them: three held open in WAL mode, three in rollback mode, four quiet.
	lost := append(append(append([]string{}, paths[:3]...), paths[held:held+3]...), paths[databases-4:]...)
	_ = w.cmd.Process.Kill()
	_ = w.cmd.Wait()
	before := map[string]string{}
	for _, p := range lost {
		if before[p], err = dump(p); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	for _, p := range lost {
		for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
			if err := os.Remove(p + suffix); err != nil && !os.IsNotExist(err) {
				return err
			}
		}
	}
	d.say("The writer was killed, and ten databases are gone, their -wal files too. Now bringing them back:")
	differ := 0
	for _, p := range lost {
		out, err := exec.CommandContext(ctx, d.program, "restore", "-config", d.config, p).CombinedOutput()
		verdict := "the same content as before"
		if err != nil {
			verdict = fmt.Sprintf("NOT RESTORED: %v: %s", err, bytes.TrimSpace(out))
		} else if after, err := dump(p); err != nil {
			verdict = fmt.Sprintf("NOT READABLE: %v", err)
		} else if after != before[p] {
			verdict = "OTHER CONTENT than before"
		}
		if !strings.HasPrefix(verdict, "the same") {
			differ++
		}
		fmt.Printf("        litestream restore %s: %s\n", strings.TrimPrefix(p, d.dir+"/"), verdict)
	}

	// Everything else, against the files that lie there.
	if _, err := d.wait(ctx, "the next cycle", func(n stats) bool { return n.Cycles > s.Cycles+1 && n.Unsynced == 0 }); err != nil {
		return d.withLog(logPath, err)
	}
	_ = daemon.Process.Signal(syscall.SIGTERM)
	if err := daemon.Wait(); err != nil {
		return d.withLog(logPath, fmt.Errorf("litestream replicate after SIGTERM: %w", err))
	}
	if differ > 0 {
		return fmt.Errorf("%d of the ten databases differ", differ)
	}
	d.say("All ten are back, row for row, and pass PRAGMA integrity_check. litestream has stopped.")
	d.next()
	return nil
}

func (d *demo) next() {
	fmt.Print(`
What happened: one litestream process looked at 1,000 databases every 2 s, read the changed
ones without taking a lock on them or leaving a file beside them, and put one compressed
object for each into a directory. With an s3: section instead of file: it is a bucket.

`)
	if os.Getenv("KEEP") == "1" {
		fmt.Printf(`The files are kept in %[1]s. Try:

    bin/litestream multi-db plan -config %[2]s
    bin/litestream replicate -config %[2]s        and, beside it:
    bin/litestream multi-db status -config %[2]s
    curl http://%[3]s/stats
    bin/litestream restore -config %[2]s -o copy.db %[4]s
    find %[1]s/backup -name '*.lz4' | head -1 | xargs lz4 -dc > plain.db
`, d.dir, d.config, d.addr, filepath.Join(d.root, "acme/databases/app0/branches/main/tenants/t0000.db"))
		return
	}
	fmt.Print(`The files of the demo are deleted; KEEP=1 make demo keeps them. With a configuration of yours, try:

    bin/litestream multi-db plan -config litestream.yml       what would be backed up, and where to
    bin/litestream replicate -config litestream.yml           do it
    bin/litestream multi-db status -config litestream.yml     what is backed up
    bin/litestream restore -config litestream.yml PATH        bring one database back
`)
}

func indent(s string) string {
	return "    " + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n    ") + "\n"
}

func (d *demo) withLog(path string, err error) error {
	b, _ := os.ReadFile(path)
	if len(b) > 4000 {
		b = b[len(b)-4000:]
	}
	return fmt.Errorf("%w\nThe log of litestream replicate ends with:\n%s", err, b)
}

// freeAddr is Litestream's usual 127.0.0.1:9090, or another port if that is taken.
func freeAddr() string {
	for _, a := range []string{"127.0.0.1:9090", "127.0.0.1:0"} {
		l, err := net.Listen("tcp", a)
		if err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	return "127.0.0.1:9090"
}

func path(root string, i int) string {
	return filepath.Join(root, []string{"acme", "globex"}[i/2%2], "databases", fmt.Sprintf("app%d", i/4%5), "branches",
		[]string{"main", "dev"}[i%2], "tenants", fmt.Sprintf("t%04d.db", i))
}

// makeDatabases lets SQLite make every database: a table of 1 to 40 rows.
func (d *demo) makeDatabases(ctx context.Context) ([]string, error) {
	paths := make([]string, databases)
	for i := range paths {
		paths[i] = path(d.root, i)
		if err := os.MkdirAll(filepath.Dir(paths[i]), 0o755); err != nil {
			return nil, err
		}
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	next := make(chan int)
	for range max(2, runtime.NumCPU()) {
		wg.Go(func() {
			for i := range next {
				if err := makeDatabase(paths[i], i); err != nil {
					mu.Lock()
					first = errors.Join(first, err)
					mu.Unlock()
				}
			}
		})
	}
	for i := range paths {
		if ctx.Err() != nil {
			break
		}
		next <- i
	}
	close(next)
	wg.Wait()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return paths, first
}

func makeDatabase(p string, i int) error {
	db, err := sql.Open("sqlite", p)
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	mode := "DELETE"
	if i < held || i >= held+rollback && i%5 == 0 {
		mode = "WAL"
	}
	_, err = db.Exec(fmt.Sprintf(`PRAGMA synchronous=OFF; PRAGMA journal_mode=%s;
		BEGIN; CREATE TABLE orders(id INTEGER PRIMARY KEY, customer TEXT, note BLOB); CREATE INDEX by_customer ON orders(customer);
		INSERT INTO orders(customer, note) WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<%d)
			SELECT 'customer '||(abs(random())%%1000), hex(randomblob(60)) FROM c; COMMIT`, mode, 1+i%40*5))
	return err
}

// ------------------------------------------------------------------ litestream

type stats struct {
	Databases    int     `json:"databases"`
	Uploads      int     `json:"uploads_success"`
	Failed       int     `json:"uploads_failed"`
	Bytes        int64   `json:"bytes_uploaded"`
	Cycles       int     `json:"cycles"`
	Unsynced     int     `json:"unsynced"`
	CycleSeconds float64 `json:"cycle_seconds"`
	raw          string
}

func (d *demo) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	d.cmds = append(d.cmds, cmd)
	return cmd
}

func (d *demo) startLitestream() (*exec.Cmd, string, error) {
	logPath := filepath.Join(d.dir, "litestream.log")
	log, err := os.Create(logPath)
	if err != nil {
		return nil, "", err
	}
	defer log.Close()
	cmd := d.command(d.program, "replicate", "-config", d.config)
	cmd.Stdout, cmd.Stderr = log, log
	return cmd, logPath, cmd.Start()
}

// wait polls /stats until cond holds, at most 40 s.
func (d *demo) wait(ctx context.Context, what string, cond func(stats) bool) (stats, error) {
	var last error
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(40 * time.Second); time.Now().Before(deadline); {
		s, err := d.stats()
		if err == nil && cond(s) {
			return s, nil
		}
		last = err
		select {
		case <-ctx.Done():
			return stats{}, ctx.Err()
		case <-tick.C:
		}
	}
	if last != nil {
		return stats{}, fmt.Errorf("waited in vain for %s: %w", what, last)
	}
	return stats{}, fmt.Errorf("waited in vain for %s", what)
}

func (d *demo) stats() (s stats, err error) {
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get("http://" + d.addr + "/stats")
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, err
	}
	var pretty bytes.Buffer
	if err := json.Indent(&pretty, b, "", "  "); err != nil {
		return s, err
	}
	s.raw = pretty.String()
	return s, nil
}

// ---------------------------------------------------------------------- writer

type writerProcess struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func (d *demo) startWriter(paths []string) (*writerProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	w := &writerProcess{cmd: d.command(self, "writer", d.root)}
	w.cmd.Stderr = os.Stderr
	if w.in, err = w.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	w.out = bufio.NewReader(out)
	if err := w.cmd.Start(); err != nil {
		return nil, err
	}
	_, err = w.ask("open")
	return w, err
}

func (w *writerProcess) ask(what string) (string, error) {
	if _, err := fmt.Fprintln(w.in, what); err != nil {
		return "", err
	}
	line, err := w.out.ReadString('\n')
	line = strings.TrimSpace(line)
	if err == nil && strings.HasPrefix(line, "error") {
		err = errors.New(line)
	}
	return line, err
}

// writer is the other process: the tenants' application. It keeps its databases
// open, and commits when told to.
func writer(root string) error {
	var conns []*sql.DB
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var n int
		var err error
		switch {
		case in.Text() == "open":
			for i := 0; i < held+rollback && err == nil; i++ {
				var db *sql.DB
				if db, err = sql.Open("sqlite", path(root, i)); err == nil {
					db.SetMaxOpenConns(1)
					_, err = db.Exec("PRAGMA wal_autocheckpoint=0; PRAGMA busy_timeout=0; INSERT INTO orders(customer) VALUES('opened')")
					conns = append(conns, db)
				}
			}
		case strings.HasPrefix(in.Text(), "change "):
			var each int
			_, err = fmt.Sscanf(in.Text(), "change %d", &each)
			for i := 0; i < each && err == nil; i++ {
				for _, db := range []*sql.DB{conns[i], conns[held+i]} {
					if err == nil {
						_, err = db.Exec("BEGIN; INSERT INTO orders(customer, note) VALUES('new', hex(randomblob(2000))); UPDATE orders SET note='seen' WHERE id%7=0; COMMIT")
						n++
					}
				}
			}
		}
		if err != nil {
			fmt.Println("error:", err)
			continue
		}
		fmt.Println(n)
	}
	return in.Err()
}

// dump returns a hash of everything in a database: schema and rows, and that it is
// sound. A copy is opened, the -wal with it, so the files stay as they are.
func dump(p string) (string, error) {
	dir, err := os.MkdirTemp("", "litestream-demo-look-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	copied := filepath.Join(dir, "x.db")
	for _, suffix := range []string{"", "-wal", "-journal"} {
		b, err := os.ReadFile(p + suffix)
		if errors.Is(err, os.ErrNotExist) && suffix != "" {
			continue
		} else if err != nil {
			return "", err
		}
		if err := os.WriteFile(copied+suffix, b, 0o600); err != nil {
			return "", err
		}
	}
	db, err := sql.Open("sqlite", copied)
	if err != nil {
		return "", err
	}
	defer db.Close()
	var sound string
	if err := db.QueryRow("PRAGMA integrity_check").Scan(&sound); err != nil || sound != "ok" {
		return "", fmt.Errorf("integrity_check: %s %w", sound, err)
	}
	h := sha256.New()
	for _, q := range []string{"SELECT type, name, sql FROM sqlite_master ORDER BY name", "SELECT id, customer, note FROM orders ORDER BY id"} {
		rows, err := db.Query(q)
		if err != nil {
			return "", err
		}
		n := 0
		for rows.Next() {
			var a, b, c any
			if err := rows.Scan(&a, &b, &c); err != nil {
				return "", err
			}
			fmt.Fprintf(h, "%v\x00%v\x00%v\x01", a, b, c)
			n++
		}
		if err := rows.Err(); err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%d rows\n", n)
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}
