package multidb

import (
	"errors"
	"fmt"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// Defaults and limits of the multi_db section.
const (
	DefaultSyncInterval             = 30 * time.Second
	DefaultSnapshotWindow           = time.Hour
	DefaultRetention                = 30 * 24 * time.Hour
	DefaultFormat                   = "lz4"
	DefaultMemoryLimit              = 256 * 1000 * 1000
	DefaultS3MaxConcurrentUploads   = 100
	DefaultFileMaxConcurrentUploads = 8

	MinSyncInterval         = time.Second
	MaxSyncInterval         = 10 * 365 * 24 * time.Hour
	MaxMinInterval          = 365 * 24 * time.Hour
	MaxSnapshotWindow       = 10 * 365 * 24 * time.Hour
	MinMemoryLimit          = 16 * 1000 * 1000
	MaxMaxConcurrentUploads = 1000
)

// Config is the multi_db section of a configuration file, complete and checked.
// A nil Config means that there is none, or that it is not enabled.
type Config struct {
	DiscoveryPattern   string
	SyncInterval       time.Duration
	SnapshotWindow     time.Duration // 0: keep every upload
	Retention          time.Duration // 0: keep all
	MinInterval        time.Duration // between uploads of one database; 0: none
	Format             string
	StateDir           string // "": beside the databases
	MemoryLimit        int64
	AllowAnyFilesystem bool
	MaxUploadBandwidth int64 // bytes a second; 0: no limit

	// Exactly one of these is set.
	S3   *S3Config
	File *FileConfig

	// Value of {{hostname}}; "" if the path template does not use it.
	Hostname string
}

// S3Config is a target in S3 or in a store that speaks its protocol.
type S3Config struct {
	Region               string
	Bucket               string
	Path                 string
	Endpoint             string // without a trailing slash; "": AWS
	ForcePathStyle       bool   // as it is to be, the default resolved
	AccessKeyID          string // both keys or neither
	SecretAccessKey      string
	SkipVerify           bool
	MaxConcurrentUploads int
	StorageClass         string
	SSE                  string
	SSEKMSKeyID          string
}

// FileConfig is a target in a local directory.
type FileConfig struct {
	Directory            string
	Path                 string
	MaxConcurrentUploads int
}

// Globals are the replica settings at the top level of a configuration file, as
// far as they are defaults of the multi_db section.
type Globals struct {
	AccessKeyID     string
	SecretAccessKey string
}

// The keys of each section. A hyphen may be written for an underscore.
var sectionKeys = map[string][]string{
	"multi_db": {"enabled", "discovery_pattern", "sync_interval", "snapshot_window", "retention", "min_interval",
		"format", "state_dir", "memory_limit", "allow_any_filesystem", "max_upload_bandwidth", "s3", "file"},
	"multi_db.s3": {"region", "bucket", "path", "endpoint", "force_path_style", "access_key_id",
		"secret_access_key", "skip_verify", "max_concurrent_uploads", "storage_class", "sse", "sse_kms_key_id"},
	"multi_db.file": {"directory", "path", "max_concurrent_uploads"},
}

// ParseConfig reads the multi_db section of a configuration file, in which
// environment variables have been expanded. It is strict where Litestream is not:
// a key that is not known or cannot work is an error of one line, which names the
// key, the value and what would be right. The disk is not touched.
func ParseConfig(yamlText []byte, globals Globals) (*Config, error) {
	node, err := findSection(yamlText)
	if err != nil || node == nil {
		return nil, err
	}
	if enabled, err := sectionEnabled(node); err != nil || !enabled {
		return nil, err
	}

	s, err := newSection("multi_db", node)
	if err != nil {
		return nil, err
	}
	if len(s.values) == 0 {
		return nil, errors.New("multi_db: the section is empty; discovery_pattern and one of s3 or file are required")
	}

	config := &Config{
		DiscoveryPattern:   s.required("discovery_pattern", `an absolute pattern such as "/data/*/tenants/*.db"`),
		SyncInterval:       s.duration("sync_interval", DefaultSyncInterval, MinSyncInterval, MaxSyncInterval),
		SnapshotWindow:     s.duration("snapshot_window", DefaultSnapshotWindow, 0, MaxSnapshotWindow),
		Retention:          s.duration("retention", DefaultRetention, 0, math.MaxInt64),
		MinInterval:        s.duration("min_interval", 0, 0, MaxMinInterval),
		Format:             s.string("format", DefaultFormat),
		StateDir:           s.directory("state_dir"),
		MemoryLimit:        s.size("memory_limit", DefaultMemoryLimit, MinMemoryLimit),
		AllowAnyFilesystem: s.bool("allow_any_filesystem", false),
		MaxUploadBandwidth: s.size("max_upload_bandwidth", 0, 0),
	}
	if config.SnapshotWindow%time.Second != 0 {
		s.fail("snapshot_window", "%s is no whole number of seconds; use %q", formatDuration(config.SnapshotWindow),
			formatDuration(config.SnapshotWindow.Truncate(time.Second)+time.Second))
	}
	switch config.Format {
	case DefaultFormat:
	case "ltx":
		s.fail("format", `"ltx" is not yet supported; use "lz4"`)
	default:
		s.fail("format", `%s is unknown; use "lz4"`, quote(config.Format))
	}
	if s.err != nil {
		return nil, s.err
	}

	var template string
	switch s3, file := s.has("s3"), s.has("file"); {
	case s3 && file:
		return nil, errors.New("multi_db: s3 and file are both set; use exactly one of them")
	case s3:
		if config.S3, err = parseS3Config(s.values["s3"], globals); err != nil {
			return nil, err
		}
		template = config.S3.Path
	case file:
		if config.File, err = parseFileConfig(s.values["file"]); err != nil {
			return nil, err
		}
		template = config.File.Path
	default:
		return nil, errors.New("multi_db: there is no target; s3 or file is required")
	}

	if strings.Contains(template, "{{hostname}}") {
		if config.Hostname, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("multi_db: path uses {{hostname}}, but this host's name is unknown: %w", err)
		}
	}
	if err := checkCore(config); err != nil {
		return nil, config.coreConfigError(err)
	}
	return config, nil
}

// sectionEnabled looks at the enabled key alone: nothing else in a section that is
// switched off is of interest.
func sectionEnabled(node *yamlNode) (bool, error) {
	if node.kind == yamlNull {
		return true, nil // to be refused as empty
	}
	if node.kind != yamlMapping {
		return false, fmt.Errorf("multi_db: %s where a section is expected; write its keys on lines of their own, indented", node.kind)
	}
	only := &yamlNode{kind: yamlMapping, values: node.values}
	for _, key := range node.keys {
		if key == "enabled" {
			only.keys = append(only.keys, key)
		}
	}
	s, err := newSection("multi_db", only)
	if err != nil {
		return false, err
	}
	return s.bool("enabled", true), s.err
}

var (
	regionRegex       = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)
	bucketRegex       = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{2,254}$`)
	storageClassRegex = regexp.MustCompile(`^[A-Z0-9_]+$`)
)

func parseS3Config(node *yamlNode, globals Globals) (*S3Config, error) {
	s, err := newSection("multi_db.s3", node)
	if err != nil {
		return nil, err
	}
	config := &S3Config{
		Region:               s.string("region", ""),
		Bucket:               s.required("bucket", "the name of a bucket"),
		Path:                 s.required("path", `a template such as "{{project}}/{{tenant}}"`),
		Endpoint:             s.endpoint("endpoint"),
		AccessKeyID:          s.string("access_key_id", ""),
		SecretAccessKey:      s.secret("secret_access_key"),
		SkipVerify:           s.bool("skip_verify", false),
		MaxConcurrentUploads: s.int("max_concurrent_uploads", DefaultS3MaxConcurrentUploads, 1, MaxMaxConcurrentUploads),
		StorageClass:         s.string("storage_class", ""),
		SSE:                  s.string("sse", ""),
		SSEKMSKeyID:          s.string("sse_kms_key_id", ""),
	}
	config.ForcePathStyle = s.bool("force_path_style", config.Endpoint != "")

	if config.Region != "" && !regionRegex.MatchString(config.Region) {
		s.fail("region", `%s is no region; use one such as "us-east-1"`, quote(config.Region))
	}
	if config.Bucket != "" && !bucketRegex.MatchString(config.Bucket) {
		s.fail("bucket", "%s is no bucket name; use the name alone, without s3:// and without slashes", quote(config.Bucket))
	}
	if config.StorageClass != "" && !storageClassRegex.MatchString(config.StorageClass) {
		s.fail("storage_class", `%s is no storage class; use one such as "STANDARD_IA"`, quote(config.StorageClass))
	}
	switch config.SSE {
	case "", "AES256", "aws:kms":
	default:
		s.fail("sse", `%s is unknown; use "AES256" or "aws:kms"`, quote(config.SSE))
	}
	if config.SSEKMSKeyID != "" && config.SSE != "aws:kms" {
		s.fail("sse_kms_key_id", `%s has no effect with sse: %q; use sse: "aws:kms"`, quote(config.SSEKMSKeyID), config.SSE)
	}
	switch {
	case config.AccessKeyID != "" && config.SecretAccessKey == "":
		s.fail("secret_access_key", "missing or empty beside access_key_id; set both or neither")
	case config.AccessKeyID == "" && config.SecretAccessKey != "":
		s.fail("access_key_id", "missing or empty beside secret_access_key; set both or neither")
	case config.AccessKeyID == "" && globals.AccessKeyID != "" && globals.SecretAccessKey != "":
		config.AccessKeyID, config.SecretAccessKey = globals.AccessKeyID, globals.SecretAccessKey
	}
	return config, s.err
}

func parseFileConfig(node *yamlNode) (*FileConfig, error) {
	s, err := newSection("multi_db.file", node)
	if err != nil {
		return nil, err
	}
	config := &FileConfig{
		Directory:            s.directory("directory"),
		Path:                 s.required("path", `a template such as "{{project}}/{{tenant}}"`),
		MaxConcurrentUploads: s.int("max_concurrent_uploads", DefaultFileMaxConcurrentUploads, 1, MaxMaxConcurrentUploads),
	}
	if config.Directory == "" {
		s.fail("directory", "missing or empty; use the absolute path of a directory")
	}
	return config, s.err
}

// coreConfigError puts the core's message, which begins with the key that is at
// fault, under the section that has this key.
func (c *Config) coreConfigError(err error) error {
	target := "multi_db.file"
	if c.S3 != nil {
		target = "multi_db.s3"
	}
	key, _, _ := strings.Cut(err.Error(), ":")
	switch {
	case isKnownKey("multi_db", key):
		return fmt.Errorf("multi_db.%w", err)
	case isKnownKey(target, key):
		return fmt.Errorf("%s.%w", target, err)
	}
	return fmt.Errorf("multi_db: %w", err)
}

// section reads the values of one mapping. Its methods return the zero value, and
// keep the first error in err, when a value is not as it should be.
type section struct {
	name   string
	values map[string]*yamlNode // by key, with underscores
	err    error
}

// newSection returns the mapping in node, after looking at its keys.
func newSection(name string, node *yamlNode) (*section, error) {
	s := &section{name: name, values: make(map[string]*yamlNode)}
	switch {
	case node == nil || node.kind == yamlNull:
		return s, nil
	case node.kind != yamlMapping:
		return nil, fmt.Errorf("%s: %s where a section is expected; write its keys on lines of their own, indented", name, node.kind)
	}
	written := make(map[string]string)
	for _, key := range node.keys {
		if holdsSecret(key) {
			return nil, fmt.Errorf("%s.secret_access_key: write a space after its colon", name)
		}
		known := strings.ReplaceAll(key, "-", "_")
		if !isKnownKey(name, known) {
			return nil, fmt.Errorf("%s.%s: unknown key; the nearest known one is %s", name, printable(key), nearestKey(name, known))
		}
		if first, ok := written[known]; ok && first != key {
			return nil, fmt.Errorf("%s.%s: written twice, as %s and as %s; use one of them", name, known, first, key)
		} else if ok {
			return nil, fmt.Errorf("%s.%s: written twice; use one of them", name, known)
		}
		written[known] = key
		s.values[known] = node.values[key]
	}
	return s, nil
}

func (s *section) fail(key, format string, args ...any) {
	if s.err == nil {
		s.err = fmt.Errorf("%s.%s: %s", s.name, key, fmt.Sprintf(format, args...))
	}
}

// has reports whether key is there at all.
func (s *section) has(key string) bool {
	_, ok := s.values[key]
	return ok
}

// text returns the value of key as it is written; false if there is none.
func (s *section) text(key string) (string, bool) {
	node := s.values[key]
	if node == nil || node.kind == yamlNull {
		return "", false
	}
	if node.kind != yamlScalar {
		s.fail(key, "%s where one value is expected", node.kind)
		return "", false
	}
	if strings.ContainsFunc(node.text, isControl) {
		s.fail(key, "the value contains a control character or a line break; remove it")
		return "", false
	}
	if holdsSecret(node.text) {
		s.fail(key, "the value goes on with secret_access_key; write a space after the colon of that key")
		return "", false
	}
	return node.text, true
}

func (s *section) string(key, defaultValue string) string {
	if text, ok := s.text(key); ok && text != "" {
		return text
	}
	return defaultValue
}

// holdsSecret reports whether text, where another value or a key should be, took in a
// line of which the colon has no space after it. It must not be repeated then.
func holdsSecret(text string) bool {
	return strings.Contains(strings.ReplaceAll(strings.ToLower(text), "-", "_"), "secret_access_key:")
}

// secret is string; of its own, so that no value of it comes near an error.
func (s *section) secret(key string) string {
	return s.string(key, "")
}

func (s *section) required(key, what string) string {
	text := s.string(key, "")
	if text == "" {
		s.fail(key, "missing or empty; use %s", what)
	}
	return text
}

func (s *section) directory(key string) string {
	text := s.string(key, "")
	if text == "" {
		return ""
	}
	if !filepath.IsAbs(text) {
		s.fail(key, "%s is not absolute; use a path that begins with a slash", quote(text))
		return ""
	}
	return filepath.Clean(text)
}

func (s *section) bool(key string, defaultValue bool) bool {
	text, ok := s.text(key)
	if !ok || text == "" {
		return defaultValue
	}
	switch strings.ToLower(text) {
	case "true", "yes", "on", "y":
		return true
	case "false", "no", "off", "n":
		return false
	}
	s.fail(key, "%s is neither true nor false", quote(text))
	return false
}

func (s *section) int(key string, defaultValue, min, max int) int {
	text, ok := s.text(key)
	if !ok || text == "" {
		return defaultValue
	}
	n, err := strconv.Atoi(text)
	if errors.Is(err, strconv.ErrRange) || err == nil && (n < min || n > max) {
		s.fail(key, "%s is out of range; use %d to %d", shorten(text), min, max)
	} else if err != nil {
		s.fail(key, "%s is no whole number; use %d to %d", quote(text), min, max)
	}
	return n
}

func (s *section) size(key string, defaultValue, min int64) int64 {
	text, ok := s.text(key)
	if !ok || text == "" {
		return defaultValue
	}
	n, err := humanize.ParseBytes(text)
	if err != nil || n > math.MaxInt64 {
		s.fail(key, "%s is no size; use a number of bytes, or one with a unit such as 256MB", quote(text))
		return 0
	}
	if int64(n) < min {
		s.fail(key, "%s is too small; use at least %s", quote(text), strings.ReplaceAll(humanize.Bytes(uint64(min)), " ", ""))
	}
	return int64(n)
}

func (s *section) duration(key string, defaultValue, min, max time.Duration) time.Duration {
	text, ok := s.text(key)
	if !ok || text == "" {
		return defaultValue
	}
	d, err := time.ParseDuration(text)
	switch {
	case err != nil:
		s.fail(key, "%s is no duration; use %s", quote(text), durationRemedy(text, defaultValue))
		return 0
	case d < min && max == math.MaxInt64, d < min && min > 0:
		s.fail(key, "%s is too short; use %s or more", shorten(text), formatDuration(min))
	case d < min || d > max:
		s.fail(key, "%s is out of range; use %s to %s", shorten(text), formatDuration(min), formatDuration(max))
	}
	return d
}

// endpoint returns an http or https URL that has a host and perhaps a port, and
// nothing else. What may be a password in it is not repeated.
func (s *section) endpoint(key string) string {
	const remedy = `use one such as "https://s3.example.com" or "http://127.0.0.1:9000"`
	text := s.string(key, "")
	if text == "" {
		return ""
	}
	u, err := url.Parse(text)
	if strings.Contains(text, "@") {
		s.fail(key, "an endpoint has no user name and no password; %s", remedy)
		return ""
	}
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Opaque != "" {
		s.fail(key, "%s is no endpoint; %s", quote(text), remedy)
		return ""
	}
	if strings.Trim(u.Path, "/") != "" || strings.ContainsAny(text, "?#") {
		s.fail(key, "%s has more than a host and a port; %s", quote(text), remedy)
		return ""
	}
	if port := u.Port(); port != "" || strings.HasSuffix(u.Host, ":") {
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > math.MaxUint16 {
			s.fail(key, "%s has no port from 1 to 65535; %s", quote(text), remedy)
			return ""
		}
	}
	return u.Scheme + "://" + u.Host
}

// durationRemedy guesses what was meant by a text that is no duration.
func durationRemedy(text string, defaultValue time.Duration) string {
	if _, err := strconv.ParseFloat(text, 64); err == nil {
		return fmt.Sprintf("a unit, as in %q", shorten(text)+"s")
	}
	for suffix, hours := range map[string]int{"d": 24, "day": 24, "days": 24, "w": 24 * 7} {
		n, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(text, suffix)))
		if err == nil && strings.HasSuffix(text, suffix) && n > 0 && n <= 36500 {
			return fmt.Sprintf("%q", fmt.Sprintf("%dh", n*hours))
		}
	}
	return fmt.Sprintf("numbers with units, as in %q", formatDuration(defaultValue))
}

// formatDuration is Duration.String without units that are zero: 1h, not 1h0m0s.
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func isControl(r rune) bool { return r < 0x20 || r == 0x7f }

// quotedLen bounds how much of a value is repeated in an error.
const quotedLen = 100

func quote(s string) string { return strconv.Quote(shorten(s)) }

func shorten(s string) string {
	if len(s) <= quotedLen {
		return s
	}
	return strings.ToValidUTF8(s[:quotedLen], "") + "..."
}

// printable is shorten for keys, which are not quoted.
func printable(key string) string {
	return strings.Trim(quote(key), `"`)
}
