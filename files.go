package main

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"
)

// The folders of the workspace through which files come and go.
const (
	inbox  = "inbox"
	outbox = "outbox"
)

const (
	maxFileName = 200    // bytes
	maxListed   = 1_000  // files of a folder that are listed
	maxEntries  = 10_000 // entries of a folder that are looked at
	maxChanged  = 100    // files that an answer names

	// minTransferRate is how fast a file must be sent or taken on average, bytes a second.
	minTransferRate = 64 << 10
)

// fileInfo is a regular file in outbox.
type fileInfo struct {
	Name     string    `json:"name"`
	Size     int64     `json:"size"`
	Modified time.Time `json:"modified"`
}

// fileStore reads and writes the agent's files with the agent's rights, never with the
// server's: whatever the agent puts there, such as a link to the server's environment, opens
// nothing that it could not open itself. It is safe for concurrent use.
type fileStore struct {
	workspace string
	limit     int64 // of a file, bytes
	agent     *syscall.Credential
}

func newFileStore(cfg *config) *fileStore {
	return &fileStore{
		workspace: cfg.Workspace,
		limit:     cfg.MaxFile,
		agent:     cfg.agent.credential,
	}
}

// asAgent calls do with the workspace, on a thread that has the agent's rights.
func (s *fileStore) asAgent(do func(workspace *os.Root) error) error {
	return withRightsOf(s.agent, func() error {
		workspace, err := os.OpenRoot(s.workspace)
		if err != nil {
			return err
		}
		defer workspace.Close()
		return do(workspace)
	})
}

var errTooLarge = errors.New("the file is too large")

// put writes a file to inbox, by a temporary name until it is complete. If that fails,
// nothing is left of it. It reports whether there was no such file before.
func (s *fileStore) put(name string, content io.Reader) (isNew bool, size int64, err error) {
	temporary := inbox + "/.upload-" + rand.Text()
	path := inbox + "/" + name
	var file *os.File
	err = s.asAgent(func(workspace *os.Root) error {
		err := workspace.Mkdir(inbox, 0o755)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		file, err = workspace.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		return err
	})
	if err != nil {
		return false, 0, err
	}

	size, err = io.Copy(file, content)
	if size > s.limit {
		err = errTooLarge
	}
	err = errors.Join(err, file.Close())
	err = s.asAgent(func(workspace *os.Root) error {
		if err == nil {
			_, missing := workspace.Lstat(path)
			isNew = missing != nil
			err = workspace.Rename(temporary, path)
		}
		if err != nil {
			workspace.Remove(temporary)
		}
		return err
	})
	return isNew, size, err
}

// open opens a regular file of outbox. It does not wait for the other side of a pipe.
func (s *fileStore) open(name string) (file *os.File, info fs.FileInfo, err error) {
	err = s.asAgent(func(workspace *os.Root) error {
		file, err = workspace.OpenFile(outbox+"/"+name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		return err
	})
	if err != nil {
		return nil, nil, err
	}

	info, err = file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		file.Close()
		return nil, nil, err
	}
	return file, info, nil
}

// list returns the regular files of outbox, the newest first. There may be no such folder.
func (s *fileStore) list() (files []fileInfo) {
	s.asAgent(func(workspace *os.Root) error {
		folder, err := workspace.OpenFile(outbox, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		defer folder.Close()

		entries, _ := folder.ReadDir(maxEntries)
		for _, entry := range entries {
			info, err := entry.Info()
			if err == nil && info.Mode().IsRegular() && checkFileName(entry.Name()) == nil {
				files = append(files, fileInfo{entry.Name(), info.Size(), info.ModTime().UTC()})
			}
		}
		return nil
	})

	slices.SortFunc(files, func(a, b fileInfo) int {
		return cmp.Or(b.Modified.Compare(a.Modified), strings.Compare(a.Name, b.Name))
	})
	return files[:min(len(files), maxListed)]
}

// changed returns the files of outbox that were not there before, or were different.
func (s *fileStore) changed(before []fileInfo) (files []fileInfo) {
	for _, file := range s.list() {
		if !slices.Contains(before, file) && len(files) < maxChanged {
			files = append(files, file)
		}
	}
	return files
}

// serveFiles answers requests below /files.
func (h *handler) serveFiles(w http.ResponseWriter, r *http.Request) error {
	err := h.auth.authorize(w, r)
	if err != nil {
		return err
	}

	path := r.URL.EscapedPath()
	name, isInbox := strings.CutPrefix(path, "/files/inbox/")
	outName, isOutbox := strings.CutPrefix(path, "/files/outbox/")
	isRead := r.Method == "GET" || r.Method == "HEAD"
	switch {
	case isInbox && r.Method == "PUT":
		return h.putFile(w, r, name)
	case isInbox:
		return methodNotAllowed(w, "PUT")
	case path == "/files/outbox" && isRead:
		files := append([]fileInfo{}, h.files.list()...) // JSON: [], not null
		writeJSON(w, http.StatusOK, map[string]any{"files": files})
		return nil
	case isOutbox && isRead:
		return h.getFile(w, r, outName)
	case isOutbox, path == "/files/outbox":
		return methodNotAllowed(w, "GET, HEAD")
	default:
		return errNotFound
	}
}

func (h *handler) putFile(w http.ResponseWriter, r *http.Request, escaped string) error {
	name, err := fileName(escaped)
	if err != nil {
		return err
	}

	// What is left of a file that is rejected is read, since a client that is still sending
	// would see a reset connection instead of the answer.
	limit := h.files.limit
	size := limit
	if r.ContentLength >= 0 {
		size = min(size, r.ContentLength)
	}
	http.NewResponseController(w).SetReadDeadline(transferDeadline(size))
	defer io.CopyN(io.Discard, r.Body, limit)

	tooLarge := errorf(codeBodyTooLarge, "a file may have %d bytes (VM_MAX_FILE)", limit)
	if r.ContentLength > limit {
		return tooLarge
	}
	content := &io.LimitedReader{R: r.Body, N: limit + 1}
	isNew, size, err := h.files.put(name, content)
	switch {
	case errors.Is(err, errTooLarge):
		return tooLarge
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return errorf(codeNoSpace, "cannot keep the file: the disk is full; remove something")
	case err != nil:
		return fmt.Errorf("cannot keep the file: %w; send it again", withoutPath(err))
	}

	status := http.StatusOK
	if isNew {
		status = http.StatusCreated
	}
	h.log.Info("file", "remote", r.RemoteAddr, "size", size)
	writeJSON(w, status, map[string]any{"name": name, "size": size})
	return nil
}

func (h *handler) getFile(w http.ResponseWriter, r *http.Request, escaped string) error {
	name, err := fileName(escaped)
	if err != nil {
		return err
	}
	file, info, err := h.files.open(name)
	if err != nil {
		return errorf(codeNotFound, "there is no such file in outbox")
	}
	defer file.Close()

	http.NewResponseController(w).SetWriteDeadline(transferDeadline(info.Size()))
	disposition := mime.FormatMediaType("attachment", map[string]string{"filename": name})
	w.Header().Set("Content-Disposition", disposition)
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	http.ServeContent(w, r, "", info.ModTime(), file)
	return nil
}

// transferDeadline is when a file of that size must have been sent or taken.
func transferDeadline(size int64) time.Time {
	seconds := size / minTransferRate
	return time.Now().Add(writeTimeout + time.Duration(seconds)*time.Second)
}

// fileName returns the name that a URL's last element stands for.
func fileName(escaped string) (string, error) {
	name, err := url.PathUnescape(escaped)
	if err != nil {
		return "", errors.New("the file's name is not percent-encoded")
	}
	return name, checkFileName(name)
}

// checkFileName wants one element of a path, which is no hidden file.
func checkFileName(name string) error {
	isOdd := strings.ContainsFunc(name, unicode.IsControl) || strings.Contains(name, "/")
	if name == "" || len(name) > maxFileName || name[0] == '.' || isOdd || !utf8.ValidString(name) {
		return fmt.Errorf("cannot use the file's name: give 1 to %d bytes of UTF-8 "+
			"without a slash, a control character or a dot at its beginning", maxFileName)
	}
	return nil
}
