// Command pause holds a pod's namespaces open: it waits for a signal and ends. It is the only program of the
// sandbox image that every pod starts with.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
	<-end
}
