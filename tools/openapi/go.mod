// The program that scripts/clients builds with a client generated from the OpenAPI document. It
// has a module of its own because nothing else needs the generator.
module github.com/jetpost/jetpost/tools/openapi

go 1.26.0

tool github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen
