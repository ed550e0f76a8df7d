package multidb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"
)

func TestError_Is(t *testing.T) {
	err := fmt.Errorf("open: %w", &Error{Code: ErrNotFound, Errno: syscall.ENOENT, Message: "no such file"})
	for _, target := range []error{ErrNotFound, syscall.ENOENT, fs.ErrNotExist} {
		if !errors.Is(err, target) {
			t.Errorf("is not %v", target)
		}
	}
	for _, target := range []error{ErrExists, syscall.EEXIST, fs.ErrExist, context.Canceled} {
		if errors.Is(err, target) {
			t.Errorf("is %v", target)
		}
	}
	for code, target := range map[Code]error{
		ErrNotFound: fs.ErrNotExist, ErrExists: fs.ErrExist, ErrAccess: fs.ErrPermission, ErrCanceled: context.Canceled,
	} {
		if !errors.Is(&Error{Code: code}, target) {
			t.Errorf("%v is not %v", code, target)
		}
	}
	var e *Error
	if !errors.As(err, &e) || e.Code != ErrNotFound || err.Error() != "open: no such file" {
		t.Errorf("err=%v", err)
	}
}

func TestCode_Error(t *testing.T) {
	for code := ErrUnsupported; code < 0; code++ {
		if text := code.Error(); text == "" || strings.HasPrefix(text, "error ") {
			t.Errorf("code %d has no text", int32(code))
		}
	}
	if got := (&Error{Code: -99}).Error(); got != "error -99" {
		t.Errorf("got %q", got)
	}
}
