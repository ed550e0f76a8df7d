package multidb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// Code is one of the core's result codes (US_E_*). It is an error, so that
// errors.Is(err, ErrBusy) works on everything that the core returns.
type Code int32

const (
	ErrNoMemory    Code = -1
	ErrArgument    Code = -2
	ErrConfig      Code = -3
	ErrIO          Code = -4
	ErrNotFound    Code = -5
	ErrExists      Code = -6
	ErrBusy        Code = -7
	ErrNotDatabase Code = -8
	ErrEmpty       Code = -9
	ErrCorrupt     Code = -10
	ErrName        Code = -11
	ErrAccess      Code = -12
	ErrNetwork     Code = -13
	ErrTimeout     Code = -14
	ErrHTTP        Code = -15
	ErrObject      Code = -16
	ErrCanceled    Code = -17
	ErrLocked      Code = -18
	ErrNoSpace     Code = -19
	ErrState       Code = -20
	ErrUnsupported Code = -21
	ErrOwned       Code = -22
)

var codeTexts = map[Code]string{
	ErrNoMemory:    "out of memory",
	ErrArgument:    "invalid argument",
	ErrConfig:      "invalid configuration",
	ErrIO:          "system call failed",
	ErrNotFound:    "not found",
	ErrExists:      "already exists",
	ErrBusy:        "busy",
	ErrNotDatabase: "not an SQLite database",
	ErrEmpty:       "empty file",
	ErrCorrupt:     "corrupt database",
	ErrName:        "path gives no legal key",
	ErrAccess:      "permission denied",
	ErrNetwork:     "target cannot be reached",
	ErrTimeout:     "timed out",
	ErrHTTP:        "target answered with an error",
	ErrObject:      "damaged backup",
	ErrCanceled:    "canceled",
	ErrLocked:      "state directory is in use",
	ErrNoSpace:     "no space left",
	ErrState:       "state file failed",
	ErrUnsupported: "not supported",
	ErrOwned:       "target is in use by another replicator",
}

func (c Code) Error() string {
	if text, ok := codeTexts[c]; ok {
		return text
	}
	return fmt.Sprintf("error %d", int32(c))
}

// Error is a failure in the core. It unwraps to its Code, to the errno of the
// failed system call, and to the error of the standard library that says the same.
type Error struct {
	Code       Code
	Errno      syscall.Errno // 0: no system call failed
	HTTPStatus int           // 0: no HTTP answer
	SQLiteCode int           // 0: SQLite did not fail
	Retryable  bool
	Message    string
}

func (e *Error) Error() string {
	if e.Message == "" {
		return e.Code.Error()
	}
	return e.Message
}

// Unwrap lets errors.Is find the code, the errno and the standard sentinel.
func (e *Error) Unwrap() []error {
	errs := []error{e.Code}
	if e.Errno != 0 {
		errs = append(errs, e.Errno)
	}
	switch e.Code {
	case ErrNotFound:
		errs = append(errs, fs.ErrNotExist)
	case ErrExists:
		errs = append(errs, fs.ErrExist)
	case ErrAccess:
		errs = append(errs, fs.ErrPermission)
	case ErrCanceled:
		errs = append(errs, context.Canceled)
	}
	return errs
}

// errClosed is returned by every call on a closed handle.
var errClosed = errors.New("multi_db: closed")
