package multidb

import (
	"errors"
	"io/fs"
	"os"
	"time"
)

// lastVerifyFile is in the state directory: what `verify` leaves for /stats.
const lastVerifyFile = "last-verify.json"

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

// recordVerify leaves v in the state directory. There is none on a machine that
// only verifies; any other failure is worth a warning, and no more.
func recordVerify(cfg *Config, v lastVerify) {
	if err := writeLastVerify(cfg, v); err != nil && !errors.Is(err, fs.ErrNotExist) {
		logger().Warn("cannot record the result for /stats", "error", err)
	}
}

func writeLastVerify(cfg *Config, v lastVerify) error {
	return writeReport(cfg, lastVerifyFile, v)
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
	var v lastVerify
	if !readReport(path, info, &v) {
		return nil
	}
	if _, err := time.Parse(time.RFC3339, v.Time); err != nil {
		return nil
	}
	return &v
}
