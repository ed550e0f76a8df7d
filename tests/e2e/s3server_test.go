package e2e

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

const (
	accessKey = "AKIAE2ETESTS"
	secretKey = "e2e-secret-3f9c1b7d5a"
	bucket    = "fleet"
)

// s3server is a versitygw with a posix backend: object KEY of the bucket is the
// file root/fleet/KEY, and every request is one line of its access log.
type s3server struct {
	t       testing.TB
	keys    [2]string // id and secret that it accepts, from the next start on
	port    int
	root    string
	log     string
	cmd     *exec.Cmd
	stopped chan struct{}
}

func startS3(t testing.TB) *s3server {
	t.Helper()
	return startS3In(t, t.TempDir())
}

func startS3In(t testing.TB, dir string) *s3server {
	t.Helper()
	s := &s3server{t: t, keys: [2]string{accessKey, secretKey}, port: freePort(t), root: filepath.Join(dir, "root"), log: filepath.Join(dir, "access.log")}
	must(t, os.MkdirAll(filepath.Join(s.root, bucket), 0o755))
	s.start()
	t.Cleanup(s.kill)
	return s
}

func (s *s3server) start() {
	s.t.Helper()
	gateway, err := gatewayOnce()
	must(s.t, err)
	out := must1[*os.File](s.t)(os.OpenFile(s.log+".out", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644))
	defer out.Close()
	s.cmd = exec.Command(gateway, "--port", fmt.Sprintf("127.0.0.1:%d", s.port), "--access", s.keys[0], "--secret", s.keys[1],
		"--access-log", s.log, "--keep-alive", "--quiet", "posix", s.root)
	s.cmd.Stdout, s.cmd.Stderr = out, out
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(s.t, startCommand(s.cmd))
	s.stopped = make(chan struct{})
	go func(cmd *exec.Cmd, stopped chan struct{}) {
		_ = cmd.Wait()
		close(stopped)
	}(s.cmd, s.stopped)
	waitFor(s.t, 20*time.Second, "versitygw to listen", func() bool {
		c, err := net.Dial("tcp", s.hostPort())
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// kill stops the server at once, in-flight requests included. start brings it back.
func (s *s3server) kill() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	<-s.stopped
	s.cmd = nil
}

func (s *s3server) hostPort() string { return fmt.Sprintf("127.0.0.1:%d", s.port) }
func (s *s3server) url() string      { return "http://" + s.hostPort() }
func (s *s3server) dir() string      { return filepath.Join(s.root, bucket) }

// target is the configuration block of this server, seen through endpoint.
func (s *s3server) target(endpoint string, extra ...string) string {
	return block("s3", append([]string{
		"region: us-east-1", "bucket: " + bucket, `path: "` + seedTemplate + `"`, "endpoint: " + endpoint,
		"access_key_id: " + accessKey, "secret_access_key: " + secretKey,
	}, extra...)...)
}

type request struct {
	op     string // s3_PutObject and so on
	uri    string
	status int
	size   int64 // object size of a PUT
}

var accessLine = regexp.MustCompile(`(?s)^\S+ \S+ \[[^]]+\] \S+ (\S+) \S+ (\S+) .*? (/\S*) (\d{3}) \S+ \d+ (\d+) \d+ \d+ `)

// requests returns the access log from line number `from` on, without what concerns
// owner objects, and the number of lines.
func (s *s3server) requests(from int) ([]request, int) {
	s.t.Helper()
	all, n := s.allRequests(from)
	return slices.DeleteFunc(all, request.isOwner), n
}

// isOwner reports whether the request is about an owner object.
func (r request) isOwner() bool { return strings.HasPrefix(r.uri, "/"+bucket+"/.litestream-multi-db/") }

// ownerPuts returns how often an owner object was put since the server's start.
func (s *s3server) ownerPuts() (n int) {
	s.t.Helper()
	all, _ := s.allRequests(0)
	for _, r := range all {
		if r.isOwner() && r.op == "s3_PutObject" {
			n++
		}
	}
	return n
}

func (s *s3server) allRequests(from int) ([]request, int) {
	s.t.Helper()
	b, err := os.ReadFile(s.log)
	must(s.t, err)
	var out []request
	n := 0
	for line := range strings.SplitSeq(string(b), "\n") {
		m := accessLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		n++
		if n <= from {
			continue
		}
		r := request{op: m[2], uri: m[3]}
		r.status, _ = strconv.Atoi(m[4])
		r.size, _ = strconv.ParseInt(m[5], 10, 64)
		out = append(out, r)
	}
	return out, n
}

type counts struct {
	put, get, list, other int
	putOK                 int
	putBytes              int64
}

func (s *s3server) counts(from int) counts {
	reqs, _ := s.requests(from)
	return countRequests(reqs)
}

func countRequests(reqs []request) (c counts) {
	for _, r := range reqs {
		switch {
		case r.op == "s3_PutObject":
			c.put++
			if r.status == 200 {
				c.putOK++
				c.putBytes += r.size
			}
		case r.op == "s3_GetObject":
			c.get++
		case strings.HasPrefix(r.op, "s3_ListObjects"):
			c.list++
		default:
			c.other++
		}
	}
	return c
}

func (s *s3server) mark() int {
	_, n := s.requests(0)
	return n
}

// resigner passes requests on to the server, signed anew with its keys and the time
// that it is.
func (s *s3server) resigner() http.Handler {
	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	keys := aws.Credentials{AccessKeyID: accessKey, SecretAccessKey: secretKey}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := r.Clone(r.Context())
		out.RequestURI = ""
		out.URL.Scheme, out.URL.Host, out.Host = "http", s.hostPort(), ""
		out.Header.Del("Authorization")
		out.Header.Del("X-Amz-Date")
		err := signer.SignHTTP(r.Context(), keys, out, r.Header.Get("X-Amz-Content-Sha256"), "s3", "us-east-1", time.Now())
		if err != nil {
			panic(err)
		}
		resp, err := proxyTransport.RoundTrip(out)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		defer resp.Body.Close()
		maps.Copy(w.Header(), resp.Header)
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
	})
}

// resign stands between a client whose clock is wrong and the server. Returns the
// endpoint.
func (s *s3server) resign(t testing.TB) string {
	t.Helper()
	l := must1[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	srv := &http.Server{ErrorLog: quietLog, Handler: s.resigner()}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close() })
	return "http://" + l.Addr().String()
}
