package multidb

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

const (
	// lastVerifyFile is in the state directory: what `verify` leaves for /stats.
	lastVerifyFile = "last-verify.json"

	// lastVerifyMax bounds how much of it is read.
	lastVerifyMax = 64 << 10
)

// lastVerify is the result of a `verify`.
type lastVerify struct {
	Time      string  `json:"time"`
	Databases uint64  `json:"databases"`
	Failed    uint64  `json:"failed"`
	Seconds   float64 `json:"seconds"`
	Error     string  `json:"error"`
}

// at is when that was; the zero time if there was none.
func (v *lastVerify) at() time.Time {
	if v == nil {
		return time.Time{}
	}
	t, _ := time.Parse(time.RFC3339, v.Time) // checked when it was read
	return t
}

// stateDirectory is where the core keeps its state.
func (c *Config) stateDirectory() (string, error) {
	if c.StateDir != "" {
		return c.StateDir, nil
	}
	prefix, err := c.Prefix()
	if err != nil {
		return "", err
	}
	return filepath.Join(prefix, defaultStateDir), nil
}

// recordVerify leaves v in the state directory. There is none on a machine that
// only verifies; any other failure is worth a warning, and no more.
func recordVerify(cfg *Config, v lastVerify) {
	if err := writeLastVerify(cfg, v); err != nil && !errors.Is(err, fs.ErrNotExist) {
		logger().Warn("cannot record the result for /stats", "error", err)
	}
}

func writeLastVerify(cfg *Config, v lastVerify) error {
	dir, err := cfg.stateDirectory()
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if cfg.StateDir == "" && !isDirectory(root, dir) {
		return fmt.Errorf("%s is a link", quote(dir)) // it lies where others may write
	}
	content, err := json.Marshal(v)
	if err != nil {
		return err
	}

	temp := fmt.Sprintf(".%s.%d", lastVerifyFile, os.Getpid())
	_ = root.Remove(temp) // of a process that was killed
	f, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(content, '\n'))
	err = errors.Join(err, f.Close())
	if err == nil {
		err = root.Rename(temp, lastVerifyFile)
	}
	if err != nil {
		_ = root.Remove(temp)
	}
	return err
}

// isDirectory reports whether dir, which was opened, is no link to a directory.
func isDirectory(root *os.Root, dir string) bool {
	opened, err := root.Stat(".")
	if err != nil {
		return false
	}
	named, err := os.Lstat(dir)
	return err == nil && os.SameFile(opened, named)
}

// lastVerifyReader reads what verify has left, again only if it has changed.
type lastVerifyReader struct {
	path string
	info os.FileInfo // of what was read last; nil: there was nothing
	last *lastVerify
}

// read returns nil where there is nothing, or nothing that can be used.
func (r *lastVerifyReader) read() *lastVerify {
	info, err := os.Lstat(r.path)
	if err != nil {
		r.info, r.last = nil, nil
		return nil
	}
	if r.info == nil || !os.SameFile(info, r.info) || info.ModTime() != r.info.ModTime() || info.Size() != r.info.Size() {
		r.info, r.last = info, readLastVerify(r.path, info)
	}
	return r.last
}

func readLastVerify(path string, info os.FileInfo) *lastVerify {
	if !info.Mode().IsRegular() || info.Size() > lastVerifyMax {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, lastVerifyMax))
	if err != nil {
		return nil
	}
	var v lastVerify
	if json.Unmarshal(content, &v) != nil {
		return nil
	}
	if _, err := time.Parse(time.RFC3339, v.Time); err != nil {
		return nil
	}
	return &v
}
