// Package e2e drives bin/litestream as a user would: real SQLite writers in their
// own processes, a real S3 server or a directory as the target, the restore
// command, then a comparison of content. Nothing of the product is linked in, but into
// testdata/day, which p35_day_test builds.
//
// Files: main_test (entry, binaries), litestream_test (configuration, processes,
// /stats), s3server_test (versitygw, its access log), proxy_test (what stands before
// it, and every fault of a network: chaos, calm), writer_test (SQLite
// in other processes), fleet_test (making and comparing databases), tasks_test (the
// multi-db commands, forged objects, fleets that are lost and restored), fakes3_test
// (an S3 server that lies), and one pNN file per numbered point of an issue: p01 to
// p14 of the one on backups, p21 to p29 of the one on fleet restore and retention, p31
// (torture) to p35 of the one on proof, p36 and on of the one on speed.
//
// Sizes can be raised from the environment: FLEET_COUNT (2000), BUSY_COMMITS (400), KILLS (40), LARGE_MB
// (200), ENDLESS_PAGES (300), CYCLES (200); BYTE_STEP (8) lowered to 1 tries every byte with
// `litestream restore`, too.
package e2e

import (
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// program is the litestream under test.
var program string

func TestMain(m *testing.M) {
	switch {
	case os.Getenv("E2E_TENANTS") != "":
		tenantMain()
		return
	case os.Getenv("E2E_WRITER") != "":
		writerMain()
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	// The tests wait more than they work; -parallel on the command line prevails.
	if err := flag.Set("test.parallel", "8"); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	if os.Getenv("HOME") == "" {
		os.Setenv("HOME", "/root")
	}
	program = os.Getenv("LITESTREAM_BIN")
	if program == "" {
		program = "../../bin/litestream"
	}
	abs, err := filepath.Abs(program)
	if err == nil {
		_, err = os.Stat(abs)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "e2e: no litestream binary: %v (run make, or set LITESTREAM_BIN)\n", err)
		return 1
	}
	program = abs
	dir, err := os.MkdirTemp("", "e2e-shared-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	sharedDir = dir
	defer os.RemoveAll(dir)
	return m.Run()
}

// sharedDir holds what several tests use: templates of databases, built tools.
var sharedDir string

var gatewayOnce = sync.OnceValues(func() (string, error) {
	if p := os.Getenv("VERSITYGW"); p != "" {
		return p, nil
	}
	tools, err := filepath.Abs("../../build/tools")
	if err != nil {
		return "", err
	}
	path := filepath.Join(tools, "versitygw")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(tools, 0o755); err != nil {
		return "", err
	}
	cmd := exec.Command("go", "install", "github.com/versity/versitygw/cmd/versitygw@v1.8.0")
	cmd.Env = append(os.Environ(), "GOBIN="+tools, "GOFLAGS=", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go install versitygw: %v\n%s", err, out)
	}
	return path, nil
})

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

var ports struct {
	sync.Mutex
	used map[int]bool
}

// freePort returns a TCP port of the loopback that no other test was given.
func freePort(t testing.TB) int {
	t.Helper()
	ports.Lock()
	defer ports.Unlock()
	if ports.used == nil {
		ports.used = make(map[int]bool)
	}
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		l.Close()
		if !ports.used[port] {
			ports.used[port] = true
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must1[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
