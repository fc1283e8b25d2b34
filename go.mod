module cockpit-vm

go 1.26

require (
	github.com/google/go-cmp v0.7.0
	github.com/kelseyhightower/envconfig v1.4.0
	github.com/oklog/run v1.2.0
	go.yaml.in/yaml/v3 v3.0.6
)
