"""The GraphQL schema, in Flash's names. `resolvers.py` answers it."""

from typing import Final

SDL: Final = '''
"""Any JSON value."""
scalar JSON

type Query {
  "Who asks, and what they may see."
  myself: User!
  flashApps: [FlashApp!]!
  flashApp(flashAppId: String!): FlashApp
  flashAppByName(flashAppName: String!): FlashApp
  flashEnvironment(flashEnvironmentId: String!): FlashEnvironment
  flashEnvironmentByName(input: FlashEnvironmentByNameInput!): FlashEnvironment
  "A build; deployed in several environments, the manifest is that of the environment which is said or meant."
  flashBuild(flashBuildId: String!, flashEnvironmentId: String): FlashBuild
}

type Mutation {
  createFlashApp(input: CreateFlashAppInput!): FlashApp
  createFlashEnvironment(input: CreateFlashEnvironmentInput!): FlashEnvironment
  "Where an artifact may be sent to with PUT, without a token, for some minutes."
  prepareFlashArtifactUpload(input: PrepareFlashArtifactUploadInput!): FlashArtifactUpload
  "Make a build of an artifact that was sent."
  finalizeFlashArtifactUpload(input: FinalizeFlashArtifactUploadInput!): FlashBuild
  "Begin a deployment; the environment's state tells how it goes."
  deployBuildToEnvironment(input: DeployBuildToEnvironmentInput!): FlashEnvironment
  "Write over what is told of a build that this server does not deploy itself."
  updateFlashBuildManifest(input: UpdateFlashBuildManifestInput!): FlashBuild
  deleteFlashApp(flashAppId: String!): Boolean
  deleteFlashEnvironment(flashEnvironmentId: String!): Boolean
}

type User {
  id: String!
  flashApps: [FlashApp!]!
  endpoints: [FlashEndpoint!]!
}

type FlashApp {
  id: String!
  name: String!
  createdAt: String!
  flashEnvironments: [FlashEnvironment!]!
  flashBuilds: [FlashBuild!]!
}

type FlashEnvironment {
  id: String!
  name: String!
  flashAppId: String!
  "DEPLOYING, HEALTHY, FAILED (something in it failed to be deployed) or EMPTY."
  state: String!
  createdAt: String!
  activeBuildId: String
  activeBuild: FlashBuild
  activeArtifact: FlashArtifact
  "What serves in it."
  manifest: JSON!
  endpoints: [FlashEndpoint!]!
  networkVolumes: [FlashNetworkVolume!]!
  "Newest first."
  flashDeployments(limit: Int): [FlashDeployment!]!
}

type FlashBuild {
  id: String!
  flashAppId: String!
  createdAt: String!
  objectKey: String!
  bytes: Float!
  manifest: JSON!
}

type FlashEndpoint {
  id: String!
  name: String!
  url: String
  status: String
  error: String
  flashEnvironmentId: String!
}

type FlashNetworkVolume {
  id: String!
  name: String!
}

type FlashDeployment {
  id: String!
  number: Int!
  kind: String!
  flashBuildId: String
  status: String!
  error: String
  by: String!
  startedAt: String!
  finishedAt: String
}

type FlashArtifact {
  objectKey: String!
  downloadUrl: String!
  expiresAt: String
}

type FlashArtifactUpload {
  uploadUrl: String!
  objectKey: String!
  expiresAt: String!
}

input FlashEnvironmentByNameInput {
  flashAppId: String
  flashAppName: String
  name: String!
}

input CreateFlashAppInput {
  name: String!
}

input CreateFlashEnvironmentInput {
  flashAppId: String!
  name: String!
}

input PrepareFlashArtifactUploadInput {
  flashAppId: String!
  tarballSize: Float
}

input FinalizeFlashArtifactUploadInput {
  flashAppId: String!
  objectKey: String!
  manifest: JSON
}

input DeployBuildToEnvironmentInput {
  flashEnvironmentId: String!
  flashBuildId: String!
}

input UpdateFlashBuildManifestInput {
  flashBuildId: String!
  manifest: JSON!
}
'''
