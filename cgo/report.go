package multidb

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// reportMax bounds how much of a report is read.
const reportMax = 64 << 10

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

// writeReport leaves v in the state directory, as name. It need not survive a power cut.
func writeReport(cfg *Config, name string, v any) error {
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

	temp := fmt.Sprintf(".%s.%d", name, os.Getpid())
	_ = root.Remove(temp) // of a process that was killed
	f, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(content, '\n'))
	err = errors.Join(err, f.Close())
	if err == nil {
		err = root.Rename(temp, name)
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

// readReport reads what writeReport has left at path, of which info was told. It
// returns false for anything else.
func readReport(path string, info os.FileInfo, v any) bool {
	if !info.Mode().IsRegular() || info.Size() > reportMax {
		return false
	}
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, reportMax))
	return err == nil && json.Unmarshal(content, v) == nil
}
