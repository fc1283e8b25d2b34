package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
)

// The git host: where it is, and how the agent's git is led to the key proxy. That is
// done by the agent's environment, and no file: git takes http://HOST:PORT/ for the
// host's addresses, PORT being the loopback's, and is told that this name and port are
// here. So neither a proxy nor NO_PROXY nor DNS can lead it past the server in the clear
// (measured with git 2.39).

const label = `[a-z0-9]([a-z0-9-]*[a-z0-9])?`

var (
	gitHostForm  = whole(label + `(\.` + label + `)*(:[1-9][0-9]*)?`)
	oddAddress   = whole(`(.*\.)?(0x[0-9a-f]*|[0-9]+)`) // by its last label, a number
	gitCountForm = whole(`[0-9]{0,4}`)
)

// checkGit takes a name, with a port perhaps, as it becomes part of addresses.
func (c *config) checkGit(*slog.Logger) error {
	name, port, hasPort := strings.Cut(c.GitHost, ":")
	if port == "443" {
		c.GitHost = name
	}
	isNumber := true
	if hasPort {
		_, err := net.LookupPort("tcp", port)
		isNumber = err == nil
	}
	hasForm := gitHostForm.MatchString(c.GitHost)
	// Such as 10.1, which is 10.0.0.1 to some.
	isOddAddress := oddAddress.MatchString(name) && net.ParseIP(name) == nil
	isTheAPIs := name == "127.0.0.1" // where the agent finds that
	if !hasForm || !isNumber || isOddAddress || isTheAPIs {
		// Not quoted: some give a URL with the token in it.
		return errors.New("cannot use VM_GIT_HOST: it is no host name; " +
			"give a host such as github.com, without a login or a path")
	}
	if c.GitToken == "" {
		return nil
	}

	user, token, isPair := strings.Cut(c.GitToken, ":")
	if isPair && (user == "" || token == "") {
		return errors.New("cannot use VM_GIT_TOKEN: it lacks what stands before or behind its colon; " +
			"give a token, or user:token")
	}
	count := os.Getenv("GIT_CONFIG_COUNT")
	if !gitCountForm.MatchString(count) {
		return fmt.Errorf("cannot use GIT_CONFIG_COUNT=%q: give a number such as 1", count)
	}
	return nil
}

// gitName is the git host without its port.
func (c *config) gitName() string {
	name, _, _ := strings.Cut(c.GitHost, ":")
	return name
}

// isForGit says whether a request to the key proxy is for the git host, by the name that
// the agent's git knows it by.
func (c *config) isForGit(r *http.Request) bool {
	asked, _, _ := strings.Cut(r.Host, ":")
	return c.GitToken != "" && asked == c.gitName()
}

// gitEnvironment leads git to the proxy, behind what the operator set in the same way.
func (c *config) gitEnvironment(proxyURL, placeholder string) []string {
	name, port := c.gitName(), proxyURL[strings.LastIndex(proxyURL, ":")+1:]
	here := "http://" + name + ":" + port + "/"
	login := base64.StdEncoding.EncodeToString([]byte("agent:" + placeholder))
	settings := [][2]string{
		{"url." + here + ".insteadOf", "https://" + c.GitHost + "/"},
		{"url." + here + ".insteadOf", "git@" + name + ":"},
		{"url." + here + ".insteadOf", "git@" + name + ":/"},
		{"url." + here + ".insteadOf", "ssh://git@" + name + "/"},
		{"http." + here + ".extraHeader", "Authorization: Basic " + login},
		{"http." + here + ".proxy", ""},
		{"http." + here + ".version", "HTTP/1.1"}, // the proxy speaks no other
		{"http.curloptResolve", name + ":" + port + ":127.0.0.1"},
	}

	count, _ := strconv.Atoi(os.Getenv("GIT_CONFIG_COUNT"))
	env := []string{fmt.Sprintf("GIT_CONFIG_COUNT=%d", count+len(settings))}
	for i, setting := range settings {
		env = append(env,
			fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", count+i, setting[0]),
			fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", count+i, setting[1]))
	}
	return env
}
