package multidb

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestLastVerify(t *testing.T) {
	cfg := fileConfig()
	cfg.StateDir = filepath.Join(t.TempDir(), "state")
	r := lastVerifyReader{path: filepath.Join(cfg.StateDir, lastVerifyFile)}
	first := lastVerify{Time: "2026-01-02T15:04:05Z", Databases: 3, Failed: 1, Seconds: 0.5, Error: "1 of 3 databases failed"}

	// The directory is replicate's: verify does not make one.
	if err := writeLastVerify(cfg, first); !errors.Is(err, fs.ErrNotExist) || r.read() != nil {
		t.Fatalf("without a state directory: %v", err)
	}
	logs := captureLog(t)
	recordVerify(cfg, first)
	if logs.String() != "" {
		t.Errorf("log: %s", logs)
	}

	if err := os.Mkdir(cfg.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 3 { // what is there is replaced
		v := first
		v.Databases += uint64(i)
		if err := writeLastVerify(cfg, v); err != nil {
			t.Fatal(err)
		}
		if got := r.read(); got == nil || *got != v {
			t.Fatalf("read %+v, want %+v", got, v)
		}
		if r.read() != r.read() {
			t.Error("read again although nothing has changed")
		}
	}
	entries, err := os.ReadDir(cfg.StateDir)
	if err != nil || len(entries) != 1 {
		t.Fatalf("%v, %v", entries, err)
	}
	if info, err := entries[0].Info(); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}

	if err := os.Chmod(cfg.StateDir, 0o500); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		recordVerify(cfg, first)
		if !strings.Contains(logs.String(), "cannot record the result for /stats") {
			t.Errorf("log: %s", logs)
		}
	}
	if err := os.Chmod(cfg.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(r.path); err != nil || r.read() != nil {
		t.Errorf("after it was removed: %v", err)
	}
}

// The file lies where nobody else should write; if somebody does, nothing breaks.
func TestLastVerify_Bad(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, lastVerifyFile)
	good := `{"time":"2026-01-02T15:04:05Z","databases":1}`
	write := func(content string) func() error {
		return func() error { return os.WriteFile(path, []byte(content), 0o600) }
	}
	for name, make := range map[string]func() error{
		"empty":     write(""),
		"no JSON":   write("{"),
		"no object": write("[]"),
		"no time":   write(`{"databases":1}`),
		"bad time":  write(`{"time":"yesterday"}`),
		"too long":  write(good + strings.Repeat(" ", reportMax)),
		"directory": func() error { return os.Mkdir(path, 0o700) },
		"link": func() error {
			if err := os.WriteFile(filepath.Join(dir, "other"), []byte(good), 0o600); err != nil {
				return err
			}
			return os.Symlink("other", path)
		},
	} {
		if err := make(); err != nil {
			t.Fatal(err)
		}
		r := lastVerifyReader{path: path}
		if v := r.read(); v != nil {
			t.Errorf("%s: read %+v", name, v)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := write(good)(); err != nil {
		t.Fatal(err)
	}
	r := lastVerifyReader{path: path}
	if v := r.read(); v == nil || v.Databases != 1 || !v.at().Equal(time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)) {
		t.Errorf("read %+v", v)
	}
}
