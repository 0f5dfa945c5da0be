module hotstart.dev/cluster/pause

go 1.21
