package e2e

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"modernc.org/sqlite"
)

// A writer is this test binary in another process, with any number of databases
// open. It is stepped by JSON lines: one request, one reply. It stands for the
// tenants' applications: nothing that the tests do in their own process can hold or
// drop a lock of theirs.

type ask struct {
	Op    string // open, exec, each, query, loop, stop, wait, progress, close, quit
	ID    string
	IDs   []string // loop: further ones, started at the same moment; each: paths
	Path  string
	Mode  string   // journal mode, or "" for what the file says
	Setup []string // pragmas run before the mode is set
	SQL   string
	N     int // loop: commits; 0: until stop
	MinMS int // loop: pause between commits
	MaxMS int
	Spill bool // loop: now and then transactions that outgrow the cache, and rollbacks
}

type reply struct {
	Err     string
	Value   string
	Commits int64
	Busy    int64
	Other   string // first error of a loop that was not SQLITE_BUSY
}

// writer is the tests' end.
type writer struct {
	t    testing.TB
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	dead bool
}

func newWriter(t testing.TB, opts ...option) *writer {
	t.Helper()
	self := must1[string](t)(os.Executable())
	w := &writer{t: t, cmd: exec.Command(self)}
	w.cmd.Env = append(os.Environ(), "E2E_WRITER=1", "GOMAXPROCS=2")
	w.cmd.Stderr = os.Stderr
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	for _, o := range opts {
		o(w.cmd)
	}
	w.in = must1[io.WriteCloser](t)(w.cmd.StdinPipe())
	w.out = bufio.NewReader(must1[io.ReadCloser](t)(w.cmd.StdoutPipe()))
	must(t, startCommand(w.cmd))
	t.Cleanup(w.kill)
	return w
}

// kill is SIGKILL, whatever is under way.
func (w *writer) kill() {
	if !w.dead {
		w.dead = true
		_ = w.cmd.Process.Kill()
		_ = w.cmd.Wait()
	}
}

// quit closes every connection in good order.
func (w *writer) quit() {
	w.t.Helper()
	w.do(ask{Op: "quit"})
	w.dead = true
	must(w.t, w.cmd.Wait())
}

func (w *writer) try(a ask) (reply, error) {
	b, err := json.Marshal(a)
	if err != nil {
		return reply{}, err
	}
	if _, err := w.in.Write(append(b, '\n')); err != nil {
		return reply{}, err
	}
	line, err := w.out.ReadBytes('\n')
	if err != nil {
		return reply{}, err
	}
	var r reply
	if err := json.Unmarshal(line, &r); err != nil {
		return r, err
	}
	if r.Err != "" {
		return r, errors.New(r.Err)
	}
	return r, nil
}

func (w *writer) do(a ask) reply {
	w.t.Helper()
	r, err := w.try(a)
	if err != nil {
		w.t.Fatalf("writer: %s %s %q: %v", a.Op, a.ID, a.SQL, err)
	}
	return r
}

// open opens path under its own name as the ID.
func (w *writer) open(path, mode string, setup ...string) {
	w.t.Helper()
	w.do(ask{Op: "open", ID: path, Path: path, Mode: mode, Setup: setup})
}

func (w *writer) exec(id, sql string) {
	w.t.Helper()
	w.do(ask{Op: "exec", ID: id, SQL: sql})
}

func (w *writer) query(id, sql string) string {
	w.t.Helper()
	return w.do(ask{Op: "query", ID: id, SQL: sql}).Value
}

// The schema that loops write. Every committed state satisfies head.n = count(*) =
// max(n) of seq, and the sum of acc.v is 0: checkSeq holds an image against it.
const seqSchema = `CREATE TABLE IF NOT EXISTS seq(n INTEGER PRIMARY KEY, pad BLOB);
CREATE TABLE IF NOT EXISTS head(n INTEGER);
CREATE TABLE IF NOT EXISTS acc(id INTEGER PRIMARY KEY, v INTEGER);
INSERT INTO head SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM head);
INSERT OR IGNORE INTO acc WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM c WHERE i<40) SELECT i,0 FROM c;`

// ------------------------------------------------------- the process's end

type writerConn struct {
	db   *sql.DB
	conn *sql.Conn
	stop atomic.Bool
	done chan struct{}
	res  reply
}

func writerMain() {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	out := json.NewEncoder(os.Stdout)
	conns := make(map[string]*writerConn)
	for in.Scan() {
		var a ask
		var r reply
		if err := json.Unmarshal(in.Bytes(), &a); err != nil {
			r.Err = err.Error()
		} else if a.Op == "quit" {
			for _, c := range conns {
				c.halt()
				c.conn.Close()
				if err := c.db.Close(); err != nil {
					r.Err = err.Error()
				}
			}
			_ = out.Encode(r)
			return
		} else if r, err = serve(conns, a); err != nil {
			r.Err = err.Error()
		}
		_ = out.Encode(r)
	}
}

func (c *writerConn) halt() reply {
	if c.done == nil {
		return c.res
	}
	c.stop.Store(true)
	<-c.done
	return c.res
}

func (c *writerConn) start(ctx context.Context, a ask) {
	c.stop.Store(false)
	c.done = make(chan struct{})
	go func() {
		defer close(c.done)
		c.res = c.loop(ctx, a)
	}()
}

func serve(conns map[string]*writerConn, a ask) (r reply, err error) {
	ctx := context.Background()
	c := conns[a.ID]
	if c == nil && a.Op != "open" && a.Op != "each" {
		return r, fmt.Errorf("no connection %q", a.ID)
	}
	switch a.Op {
	case "open":
		c, err := openConn(ctx, a)
		if err != nil {
			return r, err
		}
		conns[a.ID] = c
	case "exec":
		_, err = c.conn.ExecContext(ctx, a.SQL)
	case "each": // opened and closed, one after the other
		for _, path := range a.IDs {
			c, err := openConn(ctx, ask{Path: path, Setup: a.Setup})
			if err != nil {
				return r, err
			}
			if _, err = c.conn.ExecContext(ctx, a.SQL); err != nil {
				return r, fmt.Errorf("%s: %w", path, err)
			}
			c.conn.Close()
			if err := c.db.Close(); err != nil {
				return r, err
			}
		}
	case "query":
		var v sql.NullString
		err = c.conn.QueryRowContext(ctx, a.SQL).Scan(&v)
		r.Value = v.String
	case "loop":
		for _, id := range append(a.IDs, a.ID) {
			if conns[id] == nil {
				return r, fmt.Errorf("no connection %q", id)
			}
			conns[id].start(ctx, a)
		}
	case "stop":
		r = c.halt()
	case "wait":
		<-c.done
		r = c.res
	case "progress":
		r.Commits = progress(c)
	case "close":
		c.halt()
		c.conn.Close()
		err = c.db.Close()
		delete(conns, a.ID)
	default:
		err = fmt.Errorf("unknown op %q", a.Op)
	}
	return r, err
}

func openConn(ctx context.Context, a ask) (*writerConn, error) {
	db, err := sql.Open("sqlite", a.Path)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	setup := append([]string{"PRAGMA busy_timeout=0"}, a.Setup...)
	if a.Mode != "" {
		setup = append(setup, "PRAGMA journal_mode="+a.Mode)
	}
	for _, s := range setup {
		if _, err := conn.ExecContext(ctx, s); err != nil {
			return nil, fmt.Errorf("%s: %w", s, err)
		}
	}
	return &writerConn{db: db, conn: conn}, nil
}

var progressMu sync.Mutex
var progressOf = map[*writerConn]*atomic.Int64{}

func progress(c *writerConn) int64 {
	progressMu.Lock()
	defer progressMu.Unlock()
	if p := progressOf[c]; p != nil {
		return p.Load()
	}
	return 0
}

func isBusy(err error) bool {
	var e *sqlite.Error
	return errors.As(err, &e) && e.Code()&0xff == 5
}

// loop commits again and again. A commit that meets SQLITE_BUSY is counted and
// given up, as an application without a busy timeout would see it.
func (c *writerConn) loop(ctx context.Context, a ask) (r reply) {
	count := new(atomic.Int64)
	progressMu.Lock()
	progressOf[c] = count
	progressMu.Unlock()
	for i := 0; (a.N == 0 || i < a.N) && !c.stop.Load(); i++ {
		err := c.commit(ctx, a.Spill)
		switch {
		case err == nil:
			r.Commits++
			count.Add(1)
		case isBusy(err):
			r.Busy++
		case r.Other == "":
			r.Other = err.Error()
		}
		if a.MaxMS > 0 {
			time.Sleep(time.Duration(a.MinMS+rand.IntN(a.MaxMS-a.MinMS+1)) * time.Millisecond)
		}
	}
	return r
}

func (c *writerConn) commit(ctx context.Context, spill bool) error {
	from, to, v := 1+rand.IntN(40), 1+rand.IntN(40), rand.IntN(1000)
	rows := 1
	if spill && rand.IntN(4) == 0 {
		rows = 40
	}
	var b strings.Builder
	b.WriteString("BEGIN IMMEDIATE;")
	for range rows {
		fmt.Fprintf(&b, "UPDATE head SET n=n+1; INSERT INTO seq SELECT n, randomblob(%d) FROM head;", 50+rand.IntN(1500))
	}
	fmt.Fprintf(&b, "UPDATE acc SET v=v-%d WHERE id=%d; UPDATE acc SET v=v+%d WHERE id=%d;", v, from, v, to)
	fmt.Fprintf(&b, "UPDATE seq SET pad=randomblob(length(pad)) WHERE n IN (SELECT 1+abs(random())%%h.n FROM head h);")
	end := "COMMIT"
	if spill && rand.IntN(6) == 0 {
		end = "ROLLBACK"
	}
	b.WriteString(end)
	_, err := c.conn.ExecContext(ctx, b.String())
	if err != nil {
		_, _ = c.conn.ExecContext(ctx, "ROLLBACK")
	}
	return err
}
