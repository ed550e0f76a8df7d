package e2e

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	crand "crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"html"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// identity is made up anew for each test, so that what is found can only be its.
type identity struct{ id, secret, token string }

func newIdentity(t testing.TB) identity {
	random := func(n int) string {
		b := make([]byte, n)
		must1[int](t)(crand.Read(b))
		return base64.StdEncoding.EncodeToString(b)
	}
	return identity{"AKIA" + strings.ToUpper(strings.NewReplacer("+", "A", "/", "B").Replace(random(12))), random(30), "IQoJb3JpZ2luX2Vj" + random(600)}
}

// secrets are the texts and keys that nobody may see, by their names.
func (i identity) secrets() map[string][]byte {
	found := map[string][]byte{
		"the secret key":           []byte(i.secret),
		"the secret key in base64": []byte(base64.StdEncoding.EncodeToString([]byte(i.secret))),
		"the secret key in hex":    fmt.Appendf(nil, "%x", i.secret),
	}
	if i.token != "" {
		found["the start of the token"] = []byte(i.token[:24])
		found["the end of the token"] = []byte(i.token[len(i.token)-24:])
	}
	// Signing keys by the book; the test may run over midnight.
	for _, day := range []time.Time{time.Now().Add(-time.Minute).UTC(), time.Now().Add(time.Hour).UTC()} {
		key := []byte("AWS4" + i.secret)
		for _, step := range []string{day.Format("20060102"), "us-east-1", "s3", "aws4_request"} {
			mac := hmac.New(sha256.New, key)
			mac.Write([]byte(step))
			key = mac.Sum(nil)
			found[fmt.Sprintf("the key of %s %s", day.Format("20060102"), step)] = key
		}
	}
	return found
}

// tokenProxy stands before s and knows who: it refuses every other token, and signs
// anew without the token, which versitygw would refuse.
func tokenProxy(t testing.TB, s *s3server, who identity, config *tls.Config) (endpoint string, refused *atomic.Int64) {
	t.Helper()
	refused = new(atomic.Int64)
	inner := s.resigner()
	l := must1[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	endpoint = "http://" + l.Addr().String()
	if config != nil {
		endpoint = "https://" + l.Addr().String()
		l = tls.NewListener(l, config)
	}
	srv := &http.Server{ErrorLog: quietLog, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		signed := strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential="+who.id+"/")
		if !signed || r.Header.Get("X-Amz-Security-Token") != who.token {
			refused.Add(1)
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(http.StatusForbidden)
			// Some stores repeat what they refuse.
			fmt.Fprintf(w, "<Error><Code>InvalidToken</Code><Message>not %s, signed %s</Message></Error>",
				r.Header.Get("X-Amz-Security-Token"), r.Header.Get("Authorization"))
			return
		}
		r.Header.Del("X-Amz-Security-Token")
		inner.ServeHTTP(w, r)
	})}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close() })
	return endpoint, refused
}

// session is testdata/session.c: a process that does with the library what it is told.
type session struct {
	t     testing.TB
	cmd   *exec.Cmd
	stdin io.Writer
	lines *bufio.Scanner
}

func startSession(t testing.TB, endpoint, dir string) *session {
	t.Helper()
	program := filepath.Join(t.TempDir(), "session")
	run2(t, "gcc", "-std=gnu17", "-O2", "-Wall", "-I../../csrc/include", "-o", program, "testdata/session.c",
		"../../build/libultrasimple.a", "-lcurl", "-llz4", "-lsqlite3", "-lssl", "-lcrypto", "-lexpat", "-lm", "-pthread")
	s := &session{t: t, cmd: exec.Command(program, endpoint, bucket, dir)}
	s.stdin = must1[io.WriteCloser](t)(s.cmd.StdinPipe())
	s.lines = bufio.NewScanner(must1[io.ReadCloser](t)(s.cmd.StdoutPipe()))
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, startCommand(s.cmd))
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	})
	return s
}

func (s *session) tell(format string, args ...any) string {
	s.t.Helper()
	fmt.Fprintf(s.stdin, format+"\n", args...)
	if !s.lines.Scan() || strings.HasPrefix(s.lines.Text(), "error ") {
		s.t.Fatalf("%s: %q", format, s.lines.Text())
	}
	return strings.TrimPrefix(s.lines.Text(), "ok ")
}

func (s *session) want(answer, line string) {
	s.t.Helper()
	if got := s.tell("%s", line); got != answer {
		s.t.Fatalf("%s: %q, want %q", line, got, answer)
	}
}

var mapping = regexp.MustCompile(`^([0-9a-f]+)-([0-9a-f]+) `)

// memory calls look with the parts of the process's memory: all, or those that the
// kernel would write to a core file.
func (s *session) memory(all bool, look func(where string, b []byte)) {
	s.t.Helper()
	mem := must1[*os.File](s.t)(os.Open(fmt.Sprintf("/proc/%d/mem", s.cmd.Process.Pid)))
	defer mem.Close()
	smaps := must1[[]byte](s.t)(os.ReadFile(fmt.Sprintf("/proc/%d/smaps", s.cmd.Process.Pid)))
	var start, end uint64
	var name string
	total := 0
	for line := range strings.SplitSeq(string(smaps), "\n") {
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok {
			if !strings.Contains(flags, " rd") || !all && strings.Contains(flags, " dd") || strings.Contains(name, "[vvar") {
				continue
			}
			b := make([]byte, end-start)
			n, err := mem.ReadAt(b, int64(start))
			if err != nil && n == 0 {
				s.t.Fatalf("%s: %v", name, err)
			}
			look(name, b[:n])
			total += n
		} else if m := mapping.FindStringSubmatch(line); m != nil {
			start, _ = strconv.ParseUint(m[1], 16, 64)
			end, _ = strconv.ParseUint(m[2], 16, 64)
			name = line
		}
	}
	if total < 1<<20 {
		s.t.Fatalf("only %d bytes of memory were read", total)
	}
}

// leaks counts the needles that are in the process's memory, and names them.
func (s *session) leaks(all bool, needles map[string][]byte) (found []string) {
	s.t.Helper()
	s.memory(all, func(where string, b []byte) {
		for name, needle := range needles {
			if bytes.Contains(b, needle) {
				found = append(found, name+" in "+where)
			}
		}
	})
	return found
}

// What the library leaves in memory: nothing once it is closed; and while it runs, no
// key that a core file would have. (The token is in libcurl's buffers then. It opens
// nothing without the key.)
func Test34Memory(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]*tls.Config{"http": nil, "https": selfSigned(t)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := startS3(t)
			good, bad := newIdentity(t), newIdentity(t)
			endpoint, refused := tokenProxy(t, srv, good, config)
			dir := t.TempDir()
			must(t, os.MkdirAll(filepath.Join(dir, "data"), 0o755))
			simple(t, filepath.Join(dir, "data", "a.db"))
			build(t, filepath.Join(dir, "data", "b.db"), "CREATE TABLE t(tag, pad)")
			incompressible(t, filepath.Join(dir, "data", "b.db"), 2)

			s := startSession(t, endpoint, dir)
			sign := func(who identity) { s.tell("keys %s %s %s", who.id, who.secret, who.token) }
			sign(good)
			s.want("uploaded 2 failed 0", "cycle")
			s.want("restored", "restore a")
			sameImage(t, filepath.Join(dir, "data", "a.db"), filepath.Join(dir, "a.restored"))
			s.want("verified 2 failed 0", "verify")
			sign(bad)
			simple(t, filepath.Join(dir, "data", "c.db"))
			s.want("uploaded 0 failed 1", "cycle")
			if refused.Load() == 0 {
				t.Error("nothing was signed with the other keys")
			}
			sign(good)
			waitFor(t, 10*time.Second, "the upload, which takes a second of its own", func() bool {
				return s.tell("cycle") == "uploaded 1 failed 0"
			})

			all, keys := good.secrets(), make(map[string][]byte)
			for what, b := range bad.secrets() {
				all["another identity: "+what] = b
			}
			for what, b := range all {
				if !strings.HasSuffix(what, "token") {
					keys[what] = b
				}
			}
			if len(s.leaks(true, keys)) == 0 {
				t.Error("no key is anywhere while it runs: the search is blind")
			}
			for _, leak := range s.leaks(false, keys) {
				t.Errorf("while it runs: %s", leak)
			}
			s.tell("close")
			for _, leak := range s.leaks(true, all) {
				t.Errorf("after us_close: %s", leak)
			}
		})
	}
}

// eyes collects all that a user could see, by where it was seen.
type eyes struct {
	t    testing.TB
	seen map[string][]byte
}

func (w *eyes) add(where string, b []byte) {
	w.seen[where] = append(append(w.seen[where], '\n'), b...)
}

func (w *eyes) run(args []string, opts ...option) result {
	w.t.Helper()
	r := litestream(w.t, args, opts...)
	w.add(strings.Join(args, " "), []byte(r.all()))
	return r
}

func (w *eyes) tree(root string) {
	w.t.Helper()
	must(w.t, filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		w.add(path, must1[[]byte](w.t)(os.ReadFile(path)))
		return nil
	}))
}

func (w *eyes) report(who identity) {
	w.t.Helper()
	for where, b := range w.seen {
		for what, needle := range who.secrets() {
			if bytes.Contains(b, needle) {
				w.t.Errorf("%s is in: %s", what, where)
			}
		}
	}
}

// troublesome answers each request with the next of what stores and what stands before
// them say, some with a copy of the request, before one is passed on.
func troublesome(inner http.Handler) http.Handler {
	var n atomic.Int64
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := r.Header.Get("X-Amz-Security-Token")
		echo := fmt.Sprintf("%s of %s %s\n%v", token, r.Method, r.RequestURI, r.Header)
		switch n.Add(1) % 11 {
		case 0:
			w.Header().Set("X-Amz-Request-Id", token)
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprintf(w, "<Error><Code>AccessDenied</Code><Message>%s</Message></Error>", html.EscapeString(echo))
		case 1:
			http.Redirect(w, r, "http://127.0.0.1:1/"+token, http.StatusTemporaryRedirect)
		case 2:
			w.WriteHeader(http.StatusBadGateway)
			fmt.Fprint(w, "<html>", echo)
		case 3:
			fmt.Fprintf(w, "<Error><Code>%s</Code><Message>x</Message></Error>", r.Header.Get("Authorization"))
		case 4:
			panic(http.ErrAbortHandler)
		default:
			inner.ServeHTTP(w, r)
		}
	})
}

// No secret reaches anybody: through faults that repeat it, at the lowest level of the
// log, out of every command, in what is kept, in a dump of all goroutines, in a core file.
func Test34Nowhere(t *testing.T) {
	t.Parallel()
	for _, from := range []string{"environment", "section", "top"} {
		t.Run(from, func(t *testing.T) {
			t.Parallel()
			s := startS3(t)
			who := newIdentity(t)
			if from != "environment" {
				who.token = "" // which only the chain has
			}
			proxy, _ := tokenProxy(t, s, who, nil)
			inner := httputil.NewSingleHostReverseProxy(must1[*url.URL](t)(url.Parse(proxy)))
			inner.ErrorLog = quietLog
			front := httptest.NewUnstartedServer(troublesome(inner))
			front.Config.ErrorLog = quietLog
			front.Start()
			t.Cleanup(front.Close)

			root, state, cwd := t.TempDir(), t.TempDir(), t.TempDir()
			paths := makeFleet(t, root, 12)
			keys := []string{"access_key_id: " + who.id, "secret_access_key: " + who.secret}
			target := block("s3", "region: us-east-1", "bucket: "+bucket, `path: "`+seedTemplate+`"`, "endpoint: "+front.URL)
			c := settings{pattern: seedPattern(root), interval: "1s", keys: []string{"state_dir: " + state, "snapshot_window: 0s"}, target: target,
				top: []string{"logging: {level: debug}", "shutdown-sync-timeout: 1s"}, mayFail: true}
			env := []string{"GOTRACEBACK=crash", "LOG_LEVEL=debug"}
			switch from {
			case "environment":
				env = append(env, "AWS_ACCESS_KEY_ID="+who.id, "AWS_SECRET_ACCESS_KEY="+who.secret, "AWS_SESSION_TOKEN="+who.token)
			case "section":
				c.target += "\n  " + strings.Join(keys, "\n  ")
			case "top":
				c.top = append(c.top, "access-key-id: "+who.id, "secret-access-key: "+who.secret)
			}
			as := func(cmd *exec.Cmd) { withoutKeys(cwd)(cmd); withEnv(env...)(cmd); withCores(cwd)(cmd) }
			w := &eyes{t, make(map[string][]byte)}

			d := replicate(t, c, as)
			look := func() {
				for _, path := range []string{"/stats", "/metrics", "/debug/vars", "/debug/pprof/goroutine?debug=2", "/debug/pprof/cmdline"} {
					b, err := d.get(path)
					if err != nil && !strings.Contains(path, "debug") {
						t.Error(err)
					}
					w.add(path, b)
				}
			}
			waitFor(t, 60*time.Second, "failures", func() bool {
				look()
				change(t, paths[rand.IntN(len(paths))])
				return d.stats().UploadsFailed > 10
			})
			d.waitSynced(60 * time.Second)
			w.add("/proc/PID/cmdline", must1[[]byte](t)(os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", d.cmd.Process.Pid))))
			for _, args := range [][]string{
				{"databases"}, {"version"}, {"multi-db", "plan"}, {"multi-db", "status"}, {"multi-db", "list"}, {"multi-db", "backups", paths[0]},
				{"multi-db", "verify"}, {"multi-db", "verify", "-all"}, {"multi-db", "restore", "-dry-run"},
				{"multi-db", "restore", "-output-dir", t.TempDir()}, {"restore", "-dry-run", paths[0]}, {"multi-db", "purge", paths[1]},
			} {
				verbs := len(args)
				if args[0] == "multi-db" {
					verbs = 2
				}
				for _, more := range [][]string{{"-config", d.config}, {"-config", d.config, "-json"}} {
					all := append(append(append([]string{}, args[:verbs]...), more...), args[verbs:]...)
					if r := w.run(all, as); strings.Contains(r.all(), "flag provided") && all[0] != "version" && all[0] != "databases" {
						t.Fatalf("%v: %s", all, r.all())
					}
				}
			}
			look()
			must(t, d.cmd.Process.Signal(syscall.SIGABRT))
			<-d.exited
			if !strings.Contains(d.output(), "goroutine ") {
				t.Error("no goroutines were dumped")
			}
			if d.cmd.ProcessState.Sys().(syscall.WaitStatus).CoreDump() {
				t.Error("a core file was written")
			}
			w.add("log", []byte(d.output()))
			if !strings.Contains(d.output(), "level=DEBUG") {
				t.Error("the log is not at its lowest level")
			}
			w.run([]string{"replicate", "-once", "-config", d.config}, as)
			w.tree(state)
			w.tree(s.dir())
			w.report(who)
		})
	}
}

// A configuration that cannot be read, or not as it was meant, is not quoted where the
// secret may be.
func Test34BadConfiguration(t *testing.T) {
	t.Parallel()
	who := newIdentity(t)
	w := &eyes{t, make(map[string][]byte)}
	s3 := func(lines ...string) string {
		return "multi_db:\n  discovery_pattern: /nowhere/*.db\n  s3:\n    bucket: backups\n    path: \"{{a}}\"\n    " + strings.Join(lines, "\n    ") + "\n"
	}
	for i, text := range []string{
		s3("access_key_id: id", "secret_access_key:"+who.secret),
		s3("region: us-east-1", "secret_access_key:"+who.secret),
		s3("endpoint: http://host", "  secret-access-key:"+who.secret),
		s3("region: us-east-1", "  secret-access-key:"+who.secret, "access_key_id: id"),
		s3("secret_access_key:"+who.secret, "region: us-east-1"),
		s3("secret_access_key = " + who.secret),
		s3("secret_access_key: [" + who.secret + "]"),
		s3("secret_access_key: {a: " + who.secret + "}"),
		s3("secret_access_key: \"" + who.secret),
		s3("secret_access_key: \"" + who.secret + "\\n\""),
		s3("secret_access_key: "+who.secret, "secret_access_key: "+who.secret),
		s3("secret_access_key: "+who.secret, "\taccess_key_id: id"),
		s3("secret_key: " + who.secret),
		s3("secret_access_key: " + who.secret),
		s3("endpoint: http://me:" + who.secret + "@host"),
		s3("endpoint: \"http://me:" + who.secret + "@ho st:99999/\""),
		"multi_db:\n  discovery_pattern: /nowhere/*.db\n  s3: {bucket: abc, secret_access_key:" + who.secret + "}\n",
		"multi_db: {secret_access_key: " + who.secret + "}\n",
		"multi_db:\n  - secret_access_key: " + who.secret + "\n",
		"secret_access_key: " + who.secret + "\nmulti_db: {}\n",
		"secret-access-key: [" + who.secret + "]\nmulti_db: {}\n",
		"access-key-id: a\nsecret-access-key:" + who.secret + "\nmulti_db: {}\n",
	} {
		config := filepath.Join(t.TempDir(), "litestream.yml")
		must(t, os.WriteFile(config, []byte("logging: {level: debug}\n"+text), 0o600))
		for _, args := range [][]string{{"replicate"}, {"multi-db", "status", "-json"}} {
			r := w.run(append(args, "-config", config))
			if r.code != 1 {
				t.Errorf("configuration %d, %v: exit %d\n%s", i, args, r.code, r.all())
			}
			if bytes.Contains([]byte(r.all()), []byte(who.secret)) {
				t.Errorf("configuration %d is quoted:\n%s\n%s", i, text, r.all())
			}
		}
	}
	w.report(who)
}

// withCores allows core files as large as may be, in dir.
func withCores(dir string) option {
	return func(c *exec.Cmd) {
		w := exec.Command("sh", append([]string{"-c", `ulimit -c $(ulimit -H -c) && exec "$@"`, "sh"}, c.Args...)...)
		c.Path, c.Args, c.Err, c.Dir = w.Path, w.Args, w.Err, dir
	}
}

// The kernel writes no core file of a process that has keys, and hides its memory from
// the user's other processes; without keys all is as usual.
func Test34Dumpable(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root, to be somebody else")
	}
	who := newIdentity(t)
	for _, tt := range []struct {
		name, target string
		owner        uint32
	}{
		{"s3", block("s3", "bucket: "+bucket, `path: "`+seedTemplate+`"`, "endpoint: http://127.0.0.1:1", "access_key_id: "+who.id, "secret_access_key: "+who.secret), 0},
		{"file", "", 65534},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := openTemp(t)
			for _, name := range []string{"data", "state", "backup", "cwd"} {
				must(t, os.Mkdir(filepath.Join(dir, name), 0o700))
				must(t, os.Chown(filepath.Join(dir, name), 65534, 65534))
			}
			target := tt.target
			if target == "" {
				target = fileTarget(filepath.Join(dir, "backup"))
			}
			c := settings{pattern: seedPattern(filepath.Join(dir, "data")), interval: "1s", target: target,
				keys: []string{"state_dir: " + filepath.Join(dir, "state")}}
			d := replicate(t, c, asNobody(), withEnv("GOTRACEBACK=crash"), withCores(filepath.Join(dir, "cwd")))
			info := must1[os.FileInfo](t)(os.Stat(fmt.Sprintf("/proc/%d/environ", d.cmd.Process.Pid)))
			if got := info.Sys().(*syscall.Stat_t).Uid; got != tt.owner {
				t.Errorf("environ belongs to %d, want %d", got, tt.owner)
			}
			must(t, d.cmd.Process.Signal(syscall.SIGABRT))
			<-d.exited
			dumped := d.cmd.ProcessState.Sys().(syscall.WaitStatus).CoreDump()
			if tt.owner == 0 && dumped {
				t.Error("a core file was written")
			} else if tt.owner != 0 && !dumped {
				t.Log("no core files are written on this machine")
			}
		})
	}
}
