# Workers, supervisor and commands in one image. Node 22 here, the long-term release that the base image has; the tests run on
# the Node of the checkout (20 in CI), and package.json supports both.
FROM node:22-bookworm-slim AS build
WORKDIR /build
COPY package.json package-lock.json .npmrc ./
RUN npm ci --ignore-scripts --no-audit --no-fund
COPY tsconfig.json tsconfig.build.json ./
COPY src src
COPY workers workers
RUN npm run build

# The native batch path, on the same Node and Debian as it will run on.
FROM node:22-bookworm-slim AS native
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends g++ make python3 >/dev/null
WORKDIR /build
COPY package.json ./
COPY native native
RUN npm run build:native

FROM node:22-bookworm-slim AS dependencies
WORKDIR /keyturn
COPY package.json package-lock.json .npmrc ./
# typeorm is a peer dependency that init needs; npm keeps it. Nothing of the embedded PostgreSQL comes along.
RUN npm ci --omit=dev --ignore-scripts --no-audit --no-fund && test -d node_modules/typeorm

FROM node:22-bookworm-slim
ENV NODE_ENV=production HOST=0.0.0.0 PORT=9464
WORKDIR /keyturn
COPY --from=dependencies /keyturn/node_modules node_modules
COPY --from=build /build/dist dist
COPY --from=native /build/native/build/Release/keyturn_native.node native/build/Release/
COPY package.json LICENSE ./
# Nothing is written outside /tmp, so the root file system may be read-only.
USER node
EXPOSE 9464
ENTRYPOINT ["node", "dist/workers/keyturn.js"]
CMD ["worker"]
